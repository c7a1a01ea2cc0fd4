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
