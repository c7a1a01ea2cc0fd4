"""Which tumours a generated patient has: their number, place, size, shape and contrast inside the host organ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dsm_core.data.phantoms.shape_library import ShapeLibrary
from dsm_core.data.phantoms.shapes import Array, Shape, Space, carve, distance_in, ellipsoid, roughen

COUNTS = (0.6, 0.28, 0.12)  # share of affected patients with one, two or three tumours of a kind
DIAMETER_MM = (14.0, 45.0)


@dataclass(frozen=True)
class Habit:
    """How tumours of one kind behave.

    Attributes:
        diameter_mm: mean and spread of the diameter.
        bulge: share of the radius by which a tumour may leave its host.
        depth: how far inside the host the centre lies, as a share of the radius.
        contrast_hu: least and greatest difference from the host.
        hyperdense: share of the tumours that are brighter than the host, not darker.
    """

    diameter_mm: tuple[float, float]
    bulge: float
    depth: float
    contrast_hu: tuple[float, float] = (36.0, 64.0)
    hyperdense: float = 0.12


HABITS: Mapping[str, Habit] = {
    "liver tumor": Habit((31, 8), 0.15, 0.5),
    # Renal cancer grows out of the kidney and enhances far less than the cortex.
    "kidney tumor": Habit((31, 8), 0.9, 0.1, (50.0, 100.0), 0.0),
    "pancreas tumor": Habit((29, 6), 0.6, 0.3),
    "spleen tumor": Habit((29, 7), 0.3, 0.4),
}


@dataclass(frozen=True)
class Lesion:
    """One tumour.

    Attributes:
        core_hu: attenuation of the core against the host.
        rim_hu: attenuation of an enhancing rim against the host; None without one.
    """

    name: str
    shape: Shape
    core_hu: float
    rim_hu: float | None


def draw_lesions(
    space: Space, name: str, hosts: Sequence[Shape], cavity: Array, library: ShapeLibrary | None = None
) -> list[Lesion]:
    """One to three tumours of a kind, each in one of the host's shapes; of the library's forms where one is given."""
    rng = space.rng
    number = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    noise = space.noise(13.0)
    return [
        _draw_lesion(space, name, hosts[int(rng.integers(len(hosts)))], noise, cavity, library) for _ in range(number)
    ]


def borne_mm(name: str, diameter_mm: float) -> float:
    """A diameter brought within what tumours of a kind have in their host: two spreads around the mean."""
    mean, spread = HABITS[name].diameter_mm
    return float(np.clip(diameter_mm, max(DIAMETER_MM[0], mean - 2 * spread), min(DIAMETER_MM[1], mean + 2 * spread)))


def _draw_lesion(
    space: Space, name: str, host: Shape, noise: Array, cavity: Array, library: ShapeLibrary | None
) -> Lesion:
    rng, habit = space.rng, HABITS[name]
    real = None if library is None else library.draw(rng)
    if real is None:
        radius = float(np.clip(rng.normal(*habit.diameter_mm), *DIAMETER_MM)) / 2
    else:
        radius = borne_mm(name, real[0].diameter_mm) / 2
    depth = min(habit.depth * radius, -0.7 * float(host.distance.min()))
    inside = np.argwhere(host.distance <= -depth)
    spot = inside[rng.integers(len(inside))]
    centre = space.points[(slice(None), *host.window)][(slice(None), *spot)]
    if real is None:
        stretch = np.clip(rng.normal(1, 0.16, 3), 0.7, 1.4)
        shape = ellipsoid(space, centre, radius * stretch / np.cbrt(stretch.prod()), 2.0, rng.uniform(-90, 90, 3))
        roughen(shape, noise, 0.16 * radius)
    else:
        shape = real[0].placed(space, centre, 2 * radius, real[1])
    outside = np.maximum(distance_in(host, shape) - habit.bulge * radius, cavity[shape.window] + 2)
    np.maximum(shape.distance, outside, out=shape.distance)
    contrast = rng.uniform(*habit.contrast_hu)
    if rng.random() < habit.hyperdense:
        return Lesion(name, shape, contrast, None)
    return Lesion(name, shape, -contrast, rng.uniform(5, 30) if rng.random() < 0.25 else None)


def make_room(lesions: Sequence[Lesion], others: Sequence[Shape]) -> None:
    """Push the other organs off the tumours that bulge into them."""
    for lesion in lesions:
        for other in others:
            carve(other, lesion.shape, 1.5)
