"""How to draw a smooth organ: implicit surfaces on the voxel grid of one deformed patient.

Legend: `X Y Z` voxels in RAS+ order. All lengths and distances are millimetres; a distance is negative inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.interpolate import CubicSpline

Window = tuple[slice, slice, slice]
Array = np.ndarray
Numbers = Sequence[float] | Array

GRID_MM = 3.0
FAR_MM = 40.0


@dataclass(frozen=True)
class Shape:
    """A surface inside a window of the grid; everything beyond the window is outside.

    Attributes:
        window: where the distances lie in the grid.
        distance: (x, y, z) float32, mm to the surface, negative inside.
    """

    window: Window
    distance: Array

    def inset(self, depth_mm: float) -> Shape:
        """The same shape shrunk by a depth on every side."""
        return Shape(self.window, self.distance + np.float32(depth_mm))


@dataclass
class Space:
    """The voxel grid of one patient, every voxel carrying its place in the standard anatomy.

    Attributes:
        rng: source of the patient's own variation.
        axes: three (n,) arrays, mm from the centre of the volume.
        points: (3, X, Y, Z) float32, the standard-anatomy coordinates after pose, size and elastic deformation.
        scale, shift_mm: size and position of this patient against the standard anatomy, one number an axis.
        give_mm: the farthest that the elastic deformation moves a point.
    """

    rng: np.random.Generator
    axes: tuple[Array, Array, Array]
    points: Array
    scale: Array
    shift_mm: Array
    give_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.axes[0]), len(self.axes[1]), len(self.axes[2])

    def window(self, low: Array, high: Array) -> Window:
        """The part of the grid that can hold the box [low, high] of the standard anatomy, with a margin."""
        found = []
        for axis, scale, shift, a, b in zip(self.axes, self.scale, self.shift_mm, low, high, strict=True):
            start, stop = np.searchsorted(axis, (a * scale + shift - self.give_mm, b * scale + shift + self.give_mm))
            found.append(slice(int(start), int(stop)))
        return found[0], found[1], found[2]

    def noise(self, length_mm: float) -> Array:
        """A smooth random field of about unit variance, (X, Y, Z) float32, that varies over `length_mm`."""
        return smooth_noise(self.rng, self.axes, length_mm)


def smooth_noise(rng: np.random.Generator, axes: Sequence[Array], length_mm: float) -> Array:
    """Random values on knots `length_mm` apart, joined by cubic B-splines; (X, Y, Z) float32, about unit variance."""
    weights = [_spline_weights(axis, length_mm) for axis in axes]
    knots = rng.standard_normal([w.shape[1] for w in weights]).astype(np.float32)
    # The squared weights of a cubic B-spline sum to 0.48 on average along an axis, so that each axis damps by its root.
    return apply_weights(knots, weights) / np.float32(0.48**1.5)


def _spline_weights(positions: Array, step: float) -> Array:
    knots = np.arange(positions[0] - 2 * step, positions[-1] + 3 * step, step)
    t = np.abs(positions[:, None] - knots[None]) / step
    near, far = 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6
    return np.where(t < 1, near, np.where(t < 2, far, 0)).astype(np.float32)


def apply_weights(volume: Array, weights: Sequence[Array]) -> Array:
    """A volume resampled by one (new, old) matrix an axis, (X, Y, Z) -> (X', Y', Z')."""
    for axis, weight in enumerate(weights):
        volume = np.moveaxis(np.tensordot(weight, volume, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(volume)


def deformed_space(rng: np.random.Generator, size_mm: Sequence[float]) -> Space:
    """A patient's space: random size, position and elastic deformation of the standard anatomy."""
    axes = [(np.arange(n) - (n - 1) / 2) * GRID_MM for n in (max(2, round(size / GRID_MM)) for size in size_mm)]
    scale = np.clip(rng.normal(1.0, (0.045, 0.05, 0.05)), 0.9, 1.1)
    shift = rng.uniform(-1, 1, 3) * (5.0, 4.0, 9.0)
    grid = np.meshgrid(*[(a - s) / k for a, s, k in zip(axes, shift, scale, strict=True)], indexing="ij")
    bend = [np.clip(4.0 * smooth_noise(rng, axes, 75.0), -12, 12) for _ in grid]
    points = np.stack([g + b for g, b in zip(grid, bend, strict=True)]).astype(np.float32)
    return Space(rng, (axes[0], axes[1], axes[2]), points, scale, shift, give_mm=14.0)


def rotation(turn_deg: Numbers) -> Array:
    """The rotation about x, then y, then z, (3, 3)."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(turn_deg)):
        c, s = np.cos(angle), np.sin(angle)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i], step[i, j], step[j, i], step[j, j] = c, -s, s, c
        turned = step @ turned
    return turned


def ellipsoid(
    space: Space,
    centre: Numbers,
    radii: Numbers,
    power: float = 2.0,
    turn_deg: Numbers = (0, 0, 0),
) -> Shape:
    """A superellipsoid sum(|x_i / r_i|^power) = 1; distances to first order (value - 1) / |gradient|."""
    turned = rotation(turn_deg)
    reach = np.abs(turned) @ np.asarray(radii, float)
    window = space.window(np.asarray(centre) - reach, np.asarray(centre) + reach)
    local = space.points[(slice(None), *window)] - np.asarray(centre, np.float32)[:, None, None, None]
    if np.any(turn_deg):
        local = np.einsum("ji,jxyz->ixyz", turned.astype(np.float32), local)
    ratio = np.abs(local / np.asarray(radii, np.float32)[:, None, None, None]) + np.float32(1e-3)
    lower = ratio if power == 2.0 else ratio ** np.float32(power - 1)
    value = (lower * ratio).sum(0) ** np.float32(1 / power)
    slope = np.sqrt(((lower / np.asarray(radii, np.float32)[:, None, None, None]) ** 2).sum(0))
    return Shape(window, (value - 1) * value ** np.float32(power - 1) / slope)


def tube(space: Space, points: Sequence[Numbers], radii: Numbers, pieces: int = 4) -> Shape:
    """A tube of varying radius along a cubic spline through the points."""
    course = np.column_stack([np.asarray(points, float), np.asarray(radii, float)])
    knots = np.arange(len(course))
    fine = CubicSpline(knots, course)(np.linspace(0, len(course) - 1, pieces * (len(course) - 1) + 1))
    fine[:, 3] = np.clip(fine[:, 3], np.min(radii), np.max(radii))
    thick = fine[:, 3:].max()
    window = space.window(fine[:, :3].min(0) - thick, fine[:, :3].max(0) + thick)
    distance = np.full([s.stop - s.start for s in window], FAR_MM, np.float32)
    for start, end in pairwise(fine):
        radius = max(start[3], end[3])
        part = space.window(np.minimum(start, end)[:3] - radius, np.maximum(start, end)[:3] + radius)
        inner = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, window, strict=True))
        line = (end - start)[:3].astype(np.float32)
        local = space.points[(slice(None), *part)] - start[:3].astype(np.float32)[:, None, None, None]
        along = np.clip(np.tensordot(line / (line @ line + 1e-6), local, 1), 0, 1)
        off = np.sqrt(((local - line[:, None, None, None] * along) ** 2).sum(0))
        distance[inner] = np.minimum(distance[inner], off - start[3] - (end[3] - start[3]) * along)
    return Shape(window, distance)


def overlap(one: Shape, other: Shape) -> tuple[Window, Window] | None:
    """The shared part of two windows, as indices into each shape's own distances; None when they are apart."""
    ours, theirs = [], []
    for a, b in zip(one.window, other.window, strict=True):
        start, stop = max(a.start, b.start), min(a.stop, b.stop)
        if start >= stop:
            return None
        ours.append(slice(start - a.start, stop - a.start))
        theirs.append(slice(start - b.start, stop - b.start))
    return (ours[0], ours[1], ours[2]), (theirs[0], theirs[1], theirs[2])


def merge(one: Shape, other: Shape, blend_mm: float = 0.0) -> Shape:
    """The union of two shapes, rounded over `blend_mm` where they meet."""
    window = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one.window, other.window, strict=True)]
    fields = []
    for shape in (one, other):
        distance = np.full([w.stop - w.start for w in window], FAR_MM, np.float32)
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(shape.window, window, strict=True))
        distance[inner] = shape.distance
        fields.append(distance)
    near, far = np.minimum(*fields), np.abs(fields[0] - fields[1])
    if blend_mm > 0:
        near -= np.maximum(blend_mm - far, 0) ** 2 / np.float32(4 * blend_mm)
    return Shape((window[0], window[1], window[2]), near)


def distance_in(shape: Shape, window_of: Shape) -> Array:
    """The distances of one shape in the window of another; far outside beyond its own."""
    distance = np.full_like(window_of.distance, FAR_MM)
    shared = overlap(window_of, shape)
    if shared:
        distance[shared[0]] = shape.distance[shared[1]]
    return distance


def carve(shape: Shape, other: Shape, gap_mm: float = 0.0) -> None:
    """Take the other shape, grown by a gap, out of this one."""
    shared = overlap(shape, other)
    if shared:
        ours, theirs = shared
        shape.distance[ours] = np.maximum(shape.distance[ours], gap_mm - other.distance[theirs])


def confine(shape: Shape, boundary: Array, inset_mm: float = 0.0) -> None:
    """Keep the shape inside a boundary, a distance field of the whole grid (X, Y, Z)."""
    np.maximum(shape.distance, boundary[shape.window] + np.float32(inset_mm), out=shape.distance)


def roughen(shape: Shape, noise: Array, amplitude_mm: float) -> None:
    """Move the surface in and out by a random field of the whole grid."""
    shape.distance[...] += np.float32(amplitude_mm) * noise[shape.window]
