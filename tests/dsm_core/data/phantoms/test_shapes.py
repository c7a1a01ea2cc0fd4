"""Phantoms of phantoms: a sphere has a known volume."""

import numpy as np
import pytest

from dsm_core.data.phantoms.shapes import (
    GRID_MM,
    Space,
    apply_weights,
    carve,
    deformed_space,
    distance_in,
    ellipsoid,
    merge,
    overlap,
    smooth_noise,
    tube,
)


@pytest.fixture
def space() -> Space:
    axis = np.arange(-60, 61, GRID_MM)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).astype(np.float32)
    return Space(np.random.default_rng(0), (axis, axis, axis), points, np.ones(3), np.zeros(3), give_mm=6.0)


def volume_ml(shape) -> float:
    return float(np.clip(0.5 - shape.distance / GRID_MM, 0, 1).sum()) * GRID_MM**3 / 1000


def test_sphere_has_its_volume_and_exact_distances(space):
    sphere = ellipsoid(space, (5, -3, 2), (30, 30, 30))
    assert volume_ml(sphere) == pytest.approx(4 / 3 * np.pi * 3**3, rel=0.01)
    points = space.points[(slice(None), *sphere.window)]
    exact = np.linalg.norm(points - np.array([5, -3, 2]).reshape(3, 1, 1, 1), axis=0) - 30
    np.testing.assert_allclose(sphere.distance, exact, atol=0.1)


def test_turned_ellipsoid_keeps_its_volume_and_leaves_its_axis(space):
    straight = ellipsoid(space, (0, 0, 0), (40, 15, 15))
    turned = ellipsoid(space, (0, 0, 0), (40, 15, 15), turn_deg=(0, 0, 90))
    assert volume_ml(turned) == pytest.approx(volume_ml(straight), rel=0.01)
    widths = [np.ptp(np.nonzero((shape.distance < 0).any(axis=(0, 2)))[0]) * GRID_MM for shape in (straight, turned)]
    assert widths[0] < 32 < 72 < widths[1]


def test_straight_tube_is_a_capsule(space):
    capsule = tube(space, [(-20, 0, 0), (20, 0, 0)], [12, 12])
    assert volume_ml(capsule) == pytest.approx((np.pi * 12**2 * 40 + 4 / 3 * np.pi * 12**3) / 1000, rel=0.02)


def test_union_and_difference_of_two_spheres(space):
    def spheres():
        return ellipsoid(space, (-10, 0, 0), (20, 20, 20)), ellipsoid(space, (10, 0, 0), (20, 20, 20))

    one, other = spheres()
    both, whole = volume_ml(merge(one, other)), volume_ml(one)
    carve(one, other)
    assert both == pytest.approx(volume_ml(one) + volume_ml(other), rel=0.02)
    assert volume_ml(one) < whole
    gap, other = spheres()
    carve(gap, other, gap_mm=4)
    assert volume_ml(gap) < volume_ml(one)


def test_shapes_that_are_apart_leave_each_other_alone(space):
    one, far = ellipsoid(space, (-45, -45, -45), (8, 8, 8)), ellipsoid(space, (45, 45, 45), (8, 8, 8))
    before = one.distance.copy()
    carve(one, far)
    assert overlap(one, far) is None
    np.testing.assert_array_equal(one.distance, before)
    assert distance_in(far, one).min() > 30


def test_noise_has_unit_variance_at_every_length():
    axes = [np.arange(0, 300, GRID_MM)] * 3
    for length_mm in (9.0, 20.0):
        assert smooth_noise(np.random.default_rng(1), axes, length_mm).std() == pytest.approx(1, abs=0.1)


def test_resampling_works_on_each_axis_by_its_own_matrix():
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    pick = [np.eye(2)[[1]], np.full((1, 3), 1 / 3), np.eye(4)[[0, 2]]]
    np.testing.assert_allclose(apply_weights(volume, pick), volume[1:2].mean(1, keepdims=True)[..., [0, 2]])


def test_deformation_stays_within_the_margin_of_the_windows():
    space = deformed_space(np.random.default_rng(3), (240, 200, 200))
    for axis, (line, points) in enumerate(zip(space.axes, space.points, strict=True)):
        straight = (line - space.shift_mm[axis]) / space.scale[axis]
        shape = [1, 1, 1]
        shape[axis] = -1
        assert np.abs(points - straight.reshape(shape)).max() * space.scale[axis] <= space.give_mm
