"""An update that must not enter the average is refused, with its site and the reason."""

import numpy as np
import pytest

from strategies.refusal import UpdateRefused, validate_reference, validate_update

REFERENCE = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}


def changed(**arrays):
    return {**{key: value.copy() for key, value in REFERENCE.items()}, **arrays}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (changed(b=np.array([0, np.nan], np.float32)), "b holds 1 values that are NaN or Inf"),
        (changed(a=np.full((2, 3), np.inf, np.float32)), "a holds 6 values that are NaN or Inf"),
        (changed(b=np.zeros(3, np.float32)), r"b is float32\[3\], wanted float32\[2\]"),
        (changed(b=np.zeros(2, np.float64)), "b is float64"),
        ({"a": REFERENCE["a"]}, "tensors missing: b; tensors nobody asked for: none"),
        (changed(c=np.zeros(1, np.float32)), "tensors missing: none; tensors nobody asked for: c"),
        (changed(b=np.array([3e3, 4e3], np.float32)), r"norm 5e\+03 of the update is above"),
        (changed(b=np.array([3e30, 0], np.float32)), "norm inf of the update"),
    ],
)
def test_refusal_names_site_and_reason(arrays, reason):
    with pytest.raises(UpdateRefused, match=reason) as refusal:
        validate_update("north", arrays, REFERENCE, max_norm=100)
    assert refusal.value.site == "north"
    assert "north" in str(refusal.value)


def test_update_at_the_bound_is_accepted():
    validate_update("north", changed(b=np.array([3, 4], np.float32)), REFERENCE, max_norm=5)


def test_only_floating_tensors_are_averaged():
    with pytest.raises(ValueError, match=r"steps \(int64\)"):
        validate_reference({**REFERENCE, "steps": np.zeros(1, np.int64)}, 3)


def test_class_rows_follow_the_classes():
    with pytest.raises(ValueError, match=r"class_rows.bias wants 3 rows, one a class; found shape \[2, 1\]"):
        validate_reference({"class_rows.bias": np.zeros((2, 1), np.float32)}, 3)


def moments(first, second):
    """An update of `a` with AdamW's moments, and what it started from."""
    started = {
        "a": np.ones(2, np.float32),
        "a@exp_avg": np.zeros(2, np.float32),
        "a@exp_avg_sq": np.zeros(2, np.float32),
    }
    sent = {**started, "a@exp_avg": np.array(first, np.float32), "a@exp_avg_sq": np.array(second, np.float32)}
    return sent, started


def test_moments_may_be_as_large_as_gradients_are():
    """Under differential privacy a gradient is mostly noise, and its norm grows with the number of parameters."""
    validate_update("north", *moments([1e4, -1e3], [1e8, 1e6]), max_norm=100)


@pytest.mark.parametrize(("first", "second"), [([1e4, 0], [1e2, 0]), ([1, 0], [-1, 0]), ([1, 0], [0, 0])])
def test_moments_that_would_make_a_step_of_any_length_are_refused(first, second):
    with pytest.raises(UpdateRefused, match="a@exp_avg and its @exp_avg_sq are moments that no AdamW makes"):
        validate_update("north", *moments(first, second), max_norm=100)


def test_moments_that_adamw_makes_of_the_worst_gradients_pass():
    """The ratio is largest after gradients that grow; averaged over sites it grows no further."""
    first, second = np.zeros(2), np.zeros(2)
    for step in range(200):
        gradient = np.array([1.0, (0.99 / 0.9) ** step])  # of all sequences the second has the largest ratio
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
    assert 2.0 < (first / np.sqrt(second)).max() < 2.4
    validate_update("north", *moments(first, second), max_norm=100)
