"""What surrounds the organs of a generated patient: trunk wall, ribs, lung bases, muscles, bowel; never labelled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from dsm_core.data.phantoms.canvas import Canvas
from dsm_core.data.phantoms.shapes import Array, Shape, Space, ellipsoid, tube

THROUGH_MM = 2000.0
MUSCLE_HU = 55.0


@dataclass(frozen=True)
class Trunk:
    """The layers of the trunk as distance fields of the whole grid, (X, Y, Z), negative inside."""

    skin: Array
    muscle: Array
    cavity: Array
    lung: Array
    ribs: Array


def draw_trunk(space: Space) -> Trunk:
    """Skin, muscle wall, abdominal cavity, lung bases and ribs."""
    x, y, z = space.points
    fat_mm = space.rng.uniform(7, 24)
    rim = (np.abs(x / 122) ** 2.3 + np.abs((y - 4) / 86) ** 2.3) ** np.float32(1 / 2.3)
    from_middle = np.hypot(x, y - 4)
    cavity = (rim - 1) * from_middle / np.maximum(rim, 0.05) - 4 * np.cos(np.clip(z, -90, 90) / 60)
    towards_back = np.clip((4 - y) / np.maximum(from_middle, 1), 0, 1)
    muscle = cavity - (9 + 6 * towards_back)
    skin = muscle - (3 + fat_mm * (1.05 - 0.35 * towards_back))
    domes = np.minimum(_dome(space, (60, 0, 18), (72, 88, 86)), _dome(space, (-60, 0, 14), (64, 82, 76)))
    lung = np.maximum.reduce([cavity + 5, 30 - z, 4 - domes, 38 - np.hypot(x, y + 50)])
    from_spine = np.abs(np.arctan2(x, 4 - y))  # 0 at the spine, pi at the midline in front
    phase = (z + 58 * from_spine + space.rng.uniform(0, 27)) % 27 - 13.5
    costal_arch = -40 + 90 * np.clip(from_spine - 1.7, 0, 2)
    ribs = np.maximum.reduce(
        [0.6 * (np.hypot((cavity - 5) / 0.6, phase) - 5.5), costal_arch - z, from_spine * 40 - 100]
    )
    skin, muscle, cavity, lung, ribs = (f.astype(np.float32) for f in (skin, muscle, cavity, lung, ribs))
    return Trunk(skin, muscle, cavity, lung, ribs)


def _dome(space: Space, centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    ratio = [(p - c) / r for p, c, r in zip(space.points, centre, radii, strict=True)]
    return (np.sqrt(ratio[0] ** 2 + ratio[1] ** 2 + ratio[2] ** 2) - 1) * np.float32(min(radii))


def paint_trunk(canvas: Canvas, trunk: Trunk) -> None:
    """Everything behind the labelled organs."""
    space, grain = canvas.space, canvas.grain
    canvas.paint_field(trunk.skin, 15.0)
    canvas.paint_field(trunk.skin + 2.5, -102 + 5 * grain)
    canvas.paint_field(trunk.muscle, MUSCLE_HU + 8 * grain)
    canvas.paint_field(trunk.cavity, -98 + 9 * grain + 5 * canvas.mottle)
    canvas.paint_field(trunk.ribs, 180.0 + 240 * np.clip(trunk.ribs / 3 + 1, 0, 1))
    vessels = 260 * np.clip(canvas.mottle + grain - 3.0, 0, 1.5)
    canvas.paint_field(trunk.lung, -840 + 40 * grain + vessels)
    for muscle in _muscles(space):
        inside = np.maximum(muscle.distance, trunk.skin[muscle.window] + 6)
        canvas.paint(Shape(muscle.window, inside), MUSCLE_HU + 8 * grain[muscle.window])
    heart = ellipsoid(space, (-12, 42, 128), (56, 40, 28))
    canvas.paint(Shape(heart.window, np.maximum(heart.distance, trunk.cavity[heart.window])), 130.0)
    _paint_small_bowel(canvas, trunk)
    _paint_colon(canvas, trunk)


def _muscles(space: Space) -> list[Shape]:
    """Erector spinae, psoas, diaphragmatic crura and quadratus lumborum of both sides."""
    shapes = []
    for side in (1, -1):
        psoas = [(side * 24, -44, 12), (side * 32, -42, -50), (side * 46, -34, -150)]
        crus = [(side * 12 - 2, -24, 90), (side * 14 - 2, -24, 40), (side * 14, -26, -10)]
        shapes += [
            ellipsoid(space, (side * 34, -84, 0), (30, 19, THROUGH_MM), 2.5),
            ellipsoid(space, (side * 62, -70, -80), (22, 10, 80)),
            tube(space, psoas, [7, 14, 21]),
            tube(space, crus, [6, 6, 4]),
        ]
    return shapes


def _paint_colon(canvas: Canvas, trunk: Trunk) -> None:
    rng, space = canvas.space.rng, canvas.space
    middle = np.array([(74, 40, -50), (36, 64, -62), (-20, 66, -56), (-70, 46, -20)]) + rng.normal(0, 5, (4, 3))
    side = rng.normal(0, 3, (2, 3))
    ascending = np.array([(94, 0, -150), (96, 4, -90), (92, 14, -58), (76, 36, -50)]) + side[0]
    descending = np.array([(-84, 30, -10), (-98, -12, -40), (-98, -14, -90), (-90, 0, -150)]) + side[1]
    for course, radii in (
        (ascending, [23, 23, 21, 18]),
        (middle, [18, 17, 16, 15]),
        (descending, [15, 14, 13, 15]),
    ):
        colon = tube(space, list(course), radii)
        np.maximum(colon.distance, trunk.cavity[colon.window] + 3, out=colon.distance)
        canvas.paint(colon, 65.0)
        lumen = colon.inset(3)
        canvas.paint(lumen, 10 + 45 * canvas.grain[colon.window])
        height = space.axes[1][colon.window[1]]
        canvas.paint_gas(lumen, float(np.median(height)) + rng.uniform(-4, 14))


def _paint_small_bowel(canvas: Canvas, trunk: Trunk) -> None:
    """Close-packed loops with wall, content and gas: the cells around random seeds (Worley, SIGGRAPH 1996)."""
    space, rng = canvas.space, canvas.space.rng
    x, y, z = space.points
    middle = (np.hypot(x / 84, np.hypot((y - 32) / 46, (z + 92) / 88)) - 1) * 46 + 5 * canvas.mottle
    region = np.maximum(trunk.cavity + 6, middle).astype(np.float32)
    inside = region < 3
    seeds = rng.uniform((-60, -15, -135), (60, 90, 0), (160, 3)).astype(np.float32)
    places = space.points[:, inside].T / np.array([1.5, 1.0, 1.15], np.float32)
    distance, nearest = cKDTree(seeds).query(places, k=2)
    loops = region.copy()
    apart = np.maximum(distance[:, 0] - 14, (distance[:, 0] - distance[:, 1]) / 2 + 1.6)
    loops[inside] = np.maximum(apart, region[inside])
    canvas.paint_field(loops, 68.0)
    content = np.where(rng.random(len(seeds)) < 0.06, -850.0, rng.uniform(12, 55, len(seeds)))
    filled = np.zeros(space.shape, np.float32)
    filled[inside] = content[nearest[:, 0]]
    canvas.paint_field(loops + 3, filled + 5 * canvas.grain)
