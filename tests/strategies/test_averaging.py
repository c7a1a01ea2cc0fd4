"""Averages against numbers worked out by hand: two sites, three classes, one class nobody has."""

import numpy as np
import pytest

from strategies import averaging

REFERENCE = {
    "encoder": np.array([0.0, 0.0], np.float32),
    "class_rows.weight": np.array([[1.0, 1.0], [2.0, 2.0], [0.1, 0.3]], np.float32),
}
NORTH = {
    "encoder": np.array([1.0, 2.0], np.float32),
    "class_rows.weight": np.array([[3.0, 5.0], [9.0, 9.0], [7.0, 7.0]], np.float32),
}
SOUTH = {
    "encoder": np.array([5.0, -2.0], np.float32),
    "class_rows.weight": np.array([[7.0, 1.0], [4.0, 6.0], [8.0, 8.0]], np.float32),
}
# liver: 1 case north and 3 south; spleen: south only; kidney: nobody.
EVIDENCE = {"north": np.array([1.0, 0.0, 0.0]), "south": np.array([3.0, 2.0, 0.0])}


def two_sites(class_rows="evidence", weights=(1.0, 3.0)):
    sums = averaging.empty_sums(REFERENCE, 3, class_rows)
    averaging.add_update(sums, REFERENCE, NORTH, weights[0], EVIDENCE["north"])
    return averaging.add_update(sums, REFERENCE, SOUTH, weights[1], EVIDENCE["south"])


def rows_after(sums, row_step=1.0):
    return averaging.average_rows(
        sums.rows["class_rows.weight"], sums.evidence, REFERENCE["class_rows.weight"], row_step
    )


def test_shared_tensors_are_the_weighted_mean():
    sums = two_sites()
    delta = averaging.shared_delta(sums, REFERENCE)
    arrays, velocity = averaging.step_shared(REFERENCE, delta, step=1.0)
    np.testing.assert_array_equal(arrays["encoder"], np.array([4.0, -1.0], np.float32))
    assert arrays["encoder"].dtype == np.float32
    assert list(arrays) == ["encoder"]
    assert velocity == {}


def test_class_rows_are_averaged_by_evidence():
    rows = rows_after(two_sites())
    np.testing.assert_array_equal(rows[0], np.array([6.0, 2.0], np.float32))
    np.testing.assert_array_equal(rows[1], np.array([4.0, 6.0], np.float32))


def test_unlabelled_class_keeps_global_row_bit_for_bit():
    rows = rows_after(two_sites(), row_step=0.5)
    assert rows[2].tobytes() == REFERENCE["class_rows.weight"][2].tobytes()


def test_row_step_moves_part_of_the_way():
    rows = rows_after(two_sites(), row_step=0.25)
    np.testing.assert_array_equal(rows[0], np.array([1 + 0.25 * 5, 1 + 0.25 * 1], np.float32))


def test_shared_class_rows_are_plain_fedavg():
    sums = two_sites(class_rows="shared")
    assert sums.rows == {}
    delta = averaging.shared_delta(sums, REFERENCE)
    arrays, _ = averaging.step_shared(REFERENCE, delta, step=1.0)
    expected = np.array([[6.0, 2.0], [5.25, 6.75], [7.75, 7.75]], np.float32)
    np.testing.assert_array_equal(arrays["class_rows.weight"], expected)


def test_server_momentum_by_hand():
    delta = {"encoder": np.array([2.0, -4.0])}
    first, velocity = averaging.step_shared(REFERENCE, delta, step=0.5, momentum=0.5)
    np.testing.assert_array_equal(first["encoder"], np.array([1.0, -2.0], np.float32))
    second, velocity = averaging.step_shared(first, delta, step=0.5, momentum=0.5, velocity=velocity)
    np.testing.assert_array_equal(velocity["encoder"], [3.0, -6.0])
    np.testing.assert_array_equal(second["encoder"], np.array([2.5, -5.0], np.float32))


def test_fedexp_step_by_hand():
    # deltas (1, 2) and (5, -2) with shares 1/4 and 3/4: spread (5 + 3 * 29) / 4 = 23; mean (4, -1), norm^2 17.
    sums = two_sites()
    delta = averaging.shared_delta(sums, REFERENCE)
    assert averaging.fedexp_step(sums, delta, upper=10.0, epsilon=0.0) == 1.0
    # Opposite updates: mean (2, 0), norm^2 4, spread (13 + 13) / 2: 13 / (2 * (4 + 0.001)).
    sums = averaging.empty_sums({"encoder": REFERENCE["encoder"]}, 3)
    for sign in (1.0, -1.0):
        averaging.add_update(sums, REFERENCE, {"encoder": np.array([2.0, 3.0 * sign], np.float32)}, 1.0, np.zeros(3))
    delta = averaging.shared_delta(sums, REFERENCE)
    assert averaging.fedexp_step(sums, delta, upper=10.0) == pytest.approx(13 / 8.002, rel=1e-12)
    assert averaging.fedexp_step(sums, delta, upper=1.5) == 1.5


def test_no_update_changes_nothing():
    sums = averaging.empty_sums(REFERENCE, 3)
    delta = averaging.shared_delta(sums, REFERENCE)
    arrays, _ = averaging.step_shared(REFERENCE, delta, step=1.0)
    assert arrays["encoder"].tobytes() == REFERENCE["encoder"].tobytes()
    assert rows_after(sums).tobytes() == REFERENCE["class_rows.weight"].tobytes()


def test_streaming_equals_one_shot():
    draw = np.random.default_rng(0)
    reference = {"w": draw.normal(size=(4, 3)).astype(np.float32), "class_rows.b": np.zeros((5, 2), np.float32)}
    updates = [{k: draw.normal(size=v.shape).astype(np.float32) for k, v in reference.items()} for _ in range(6)]
    weights, evidence = draw.uniform(1, 9, 6), draw.integers(0, 5, (6, 5)).astype(float)
    evidence[:, 3] = 0
    sums = averaging.empty_sums(reference, 5)
    for update, weight, held in zip(updates, weights, evidence, strict=True):
        averaging.add_update(sums, reference, update, weight, held)
    arrays, _ = averaging.step_shared(reference, averaging.shared_delta(sums, reference), 1.0)
    once = np.average([update["w"] for update in updates], axis=0, weights=weights)
    np.testing.assert_allclose(arrays["w"], once, rtol=1e-6)
    rows = averaging.average_rows(sums.rows["class_rows.b"], sums.evidence, reference["class_rows.b"])
    for c in (0, 1, 2, 4):
        once = np.average([update["class_rows.b"][c] for update in updates], axis=0, weights=evidence[:, c])
        np.testing.assert_allclose(rows[c], once, rtol=1e-6)
    assert not rows[3].any()


def test_moments_are_averaged_and_never_stepped():
    reference = {"encoder": np.array([1.0], np.float32), "encoder@exp_avg_sq": np.array([4.0], np.float32)}
    sums = averaging.empty_sums(reference, 1)
    for shift in (1.0, 3.0):
        site = {"encoder": reference["encoder"] + shift, "encoder@exp_avg_sq": reference["encoder@exp_avg_sq"] - shift}
        averaging.add_update(sums, reference, {k: v.astype(np.float32) for k, v in site.items()}, 1.0, np.zeros(1))
    assert sums.square_norm == pytest.approx(1.0 + 9.0)
    arrays, velocity = averaging.step_shared(reference, averaging.shared_delta(sums, reference), 3.0, momentum=0.5)
    assert arrays["encoder"] == pytest.approx(1 + 3 * 2)
    assert arrays["encoder@exp_avg_sq"] == pytest.approx(2.0)
    assert list(velocity) == ["encoder"]
