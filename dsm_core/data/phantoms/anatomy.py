"""Where the abdominal organs of a generated patient lie: the standard anatomy, varied by the patient's own draws.

The patient lies supine; x points to the patient's right, y forward, z to the head, in mm from the middle of the
abdomen, about the level of the first lumbar vertebra.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsm_core.data.phantoms.shapes import Array, Shape, Space, carve, confine, ellipsoid, merge, roughen, tube

LEVEL_MM = 34.0  # a lumbar vertebra and its disc
DISC_MM = 7.0
THROUGH_MM = 400.0  # beyond the volume on both sides


@dataclass(frozen=True)
class Organs:
    """The shapes of one patient; kidneys and their sinuses are right, then left."""

    liver: Shape
    spleen: Shape
    kidneys: tuple[Shape, Shape]
    pancreas: Shape
    stomach: Shape
    aorta: Shape
    vertebrae: Shape
    renal_sinuses: tuple[Shape, Shape]
    spinal_canal: Shape
    discs: Shape
    postcava: Shape
    gallbladder: Shape
    duodenum: Shape
    vessels: tuple[Shape, ...]
    hepatic_vessels: tuple[Shape, ...]

    @property
    def hosts(self) -> dict[str, tuple[Shape, ...]]:
        """The organs in which a tumour can grow, by name."""
        return {
            "liver": (self.liver,),
            "spleen": (self.spleen,),
            "kidney": self.kidneys,
            "pancreas": (self.pancreas,),
        }


def draw_organs(space: Space, cavity: Array, lung: Array) -> Organs:
    """Every organ of one patient, kept apart by thin layers of fat, inside the cavity and below the lung.

    Args:
        cavity, lung: (X, Y, Z) distance fields, negative inside.
    """
    vertebrae, spinal_canal, discs = _spine(space)
    aorta, postcava = _aorta(space), _postcava(space)
    liver, spleen, stomach, pancreas = _liver(space), _spleen(space), _stomach(space), _pancreas(space)
    right, left = _kidney(space, 1, -27), _kidney(space, -1, -12)
    kidneys, sinuses = (right[0], left[0]), (right[1], left[1])
    gallbladder = ellipsoid(space, _near(space, 48, 44, -12, spread=4), _sized(space, 13, 14, 24, spread=0.15))
    duodenum = tube(
        space,
        [(28, 42, 4), (52, 32, 2), (58, 14, -20), (48, 0, -45), (10, 2, -52), (-20, 10, -40)],
        [11, 12, 13, 12, 10, 9],
    )
    for organ in (stomach, spleen, liver, pancreas, *kidneys, gallbladder, duodenum):
        confine(organ, cavity, 3.0)
    for organ in (stomach, spleen, liver):
        confine(organ, -lung, 3.0)
    for organ, others, gap_mm in (
        (right[0], (vertebrae,), 8.0),
        (left[0], (vertebrae,), 8.0),
        (spleen, (*kidneys, stomach), 3.0),
        (gallbladder, (right[0],), 4.0),
        (liver, (*kidneys, spleen), 1.5),
        (liver, (gallbladder, postcava), -1.0),
        (pancreas, (vertebrae, aorta, postcava), 3.0),
        (pancreas, (spleen, *kidneys), 2.5),
        (liver, (pancreas,), 2.5),
        (stomach, (liver, pancreas), 2.5),
        (duodenum, (pancreas, liver, *kidneys, aorta, postcava), 1.0),
    ):
        for other in others:
            carve(organ, other, gap_mm)
    return Organs(
        liver=liver,
        spleen=spleen,
        kidneys=kidneys,
        pancreas=pancreas,
        stomach=stomach,
        aorta=aorta,
        vertebrae=vertebrae,
        renal_sinuses=sinuses,
        spinal_canal=spinal_canal,
        discs=discs,
        postcava=postcava,
        gallbladder=gallbladder,
        duodenum=duodenum,
        vessels=_vessels(space),
        hepatic_vessels=_hepatic_vessels(space),
    )


def _near(space: Space, *point: float, spread: float = 3.0) -> Array:
    return np.asarray(point) + np.clip(space.rng.normal(0, spread, 3), -2 * spread, 2 * spread)


def _sized(space: Space, *radii: float, spread: float = 0.08) -> Array:
    common = space.rng.normal(1, spread)
    return np.asarray(radii) * np.clip(common * space.rng.normal(1, spread / 2, len(radii)), 0.75, 1.3)


def _liver(space: Space) -> Shape:
    right = ellipsoid(space, _near(space, 62, 0, 30), _sized(space, 60, 78, 72), 2.4)
    left = ellipsoid(space, _near(space, 4, 46, 54), _sized(space, 56, 31, 35, spread=0.12), 2.0, (0, -12, 10))
    liver = merge(right, left, 22.0)
    x, y, z = space.points[(slice(None), *liver.window)]
    # The visceral surface faces down, back and to the left.
    visceral = -0.62 * (x - 52) - 0.18 * y - 0.76 * (z + 14 + space.rng.normal(0, 4))
    np.maximum(liver.distance, visceral.astype(np.float32), out=liver.distance)
    roughen(liver, space.noise(30.0), 2.5)
    return liver


def _spleen(space: Space) -> Shape:
    turn = (0, 0, space.rng.normal(-25, 6))
    spleen = ellipsoid(space, _near(space, -93, -31, 45), _sized(space, 27, 50, 50, spread=0.13), 2.2, turn)
    roughen(spleen, space.noise(26.0), 2.5)
    return spleen


def _stomach(space: Space) -> Shape:
    course = [(-50, -10, 66), (-58, 22, 40), (-42, 46, 12), (-8, 52, 2), (28, 40, 2)]
    stomach = tube(space, [_near(space, *p) for p in course], _sized(space, 27, 27, 23, 16, 10, spread=0.14))
    roughen(stomach, space.noise(30.0), 2.5)
    return stomach


def _pancreas(space: Space) -> Shape:
    course = [(36, 14, -22), (30, 20, -4), (6, 26, 5), (-26, 16, 14), (-54, -2, 24), (-78, -14, 34)]
    pancreas = tube(space, [_near(space, *p) for p in course], _sized(space, 15, 16, 12, 12, 12, 10))
    roughen(pancreas, space.noise(14.0), 2.0)
    return pancreas


def _kidney(space: Space, side: int, height: float) -> tuple[Shape, Shape]:
    """A kidney and its sinus; the upper pole leans to the spine and the hilum opens forward and inward."""
    rng = space.rng
    centre = _near(space, side * 60, -36, height)
    turn = (rng.normal(-8, 3), side * rng.normal(10, 4), side * rng.normal(-22, 6))
    kidney = ellipsoid(space, centre, _sized(space, 25, 24, 51), 2.2, turn)
    roughen(kidney, space.noise(14.0), 1.2)
    sinus = ellipsoid(space, centre + np.array([-side * 18, 9, -2]), _sized(space, 15, 9, 17), 2.0, (0, 0, side * 25))
    carve(kidney, sinus)
    return kidney, sinus


def _spine(space: Space) -> tuple[Shape, Shape, Shape]:
    """Vertebrae (bodies, arches, processes), spinal canal and discs, all in one window."""
    window = space.window(np.array([-45, -106, -THROUGH_MM]), np.array([45, -24, THROUGH_MM]))
    x, y, z = space.points[(slice(None), *window)]
    phase = (z + space.rng.uniform(0, LEVEL_MM)) % LEVEL_MM - LEVEL_MM / 2
    level = np.abs(phase)
    to_disc = LEVEL_MM / 2 - DISC_MM / 2 - level
    waist = 2.0 * np.cos(level * (np.pi / 17))
    column = ((np.abs(x / 22) ** 2.6 + np.abs((y + 44) / 17) ** 2.6) ** np.float32(1 / 2.6) - 1) * 19 + waist
    canal = np.hypot(x / 10, (y + 69) / 8.5) * 9 - 9
    arch = np.maximum(np.hypot(x / 17, (y + 69) / 15) * 16 - 16, level - 14)
    spinous = np.maximum.reduce([np.abs(x) - 4, -103 - y, y + 78, np.abs(phase + 5) - 10])
    transverse = np.maximum(np.hypot(y + 67 + 0.15 * np.abs(x), phase - 2) - 5.5, np.abs(x) - 37)
    bone = np.minimum.reduce([np.maximum(column, -to_disc), arch, spinous, transverse])
    return Shape(window, np.maximum(bone, -canal)), Shape(window, canal), Shape(window, np.maximum(column, to_disc))


def _aorta(space: Space) -> Shape:
    bend = space.rng.normal(0, 2.5, 3)
    radius = np.clip(space.rng.normal(10.5, 1.2), 8.5, 13.5)
    course = [
        (-17, -26, 150),
        (-12 + bend[0], -20, 70),
        (-8 + bend[1], -17, 5),
        (-7 + bend[2], -16, -60),
        (-3, -18, -100),
    ]
    return tube(space, course, radius * np.array([1.15, 1.1, 1, 0.92, 0.9]))


def _postcava(space: Space) -> Shape:
    course = [(19, -20, -150), (19, -16, -50), (20, -10, 20), (22, -2, 75), (14, 8, 112)]
    return tube(space, course, [10, 11, 11, 12, 12])


def _vessels(space: Space) -> tuple[Shape, ...]:
    """Mesenteric, renal, iliac, splenic and portal vessels."""
    paired = [[(-3, -18, -98), (side * 22 - 2, -20, -150)] for side in (1, -1)]
    renal = [[(-6, -18, -14), (side * 26, -26, -18), (side * 44, -28, -22)] for side in (1, -1)]
    return (
        tube(space, [(-7, -10, 2), (-4, 2, -12), (2, 8, -45), (8, 12, -85)], [4, 4, 3.5, 2.5]),
        *(tube(space, course, [7, 6]) for course in paired),
        *(tube(space, course, [3.5, 3.2, 3]) for course in renal),
        tube(space, [(16, 14, -2), (15, 12, -40), (12, 16, -85)], [6, 5, 3]),
        tube(space, [(16, 13, 0), (-20, 4, 12), (-60, -14, 30)], [5.5, 4.5, 4]),
        tube(space, [(16, 13, 0), (30, 16, 18), (44, 14, 34)], [7, 7, 6]),
    )


def _hepatic_vessels(space: Space) -> tuple[Shape, ...]:
    """Portal branches and hepatic veins."""
    courses = [
        ([(44, 14, 34), (60, 8, 30), (80, 0, 22), (98, -12, 8)], [6.5, 5.5, 4.5, 3]),
        ([(60, 8, 30), (76, 30, 22), (92, 44, 8)], [4.5, 4, 2.5]),
        ([(62, 6, 30), (78, -30, 20), (92, -46, 2)], [4.5, 4, 2.5]),
        ([(44, 14, 34), (24, 34, 50), (-10, 48, 56)], [5, 4, 2.5]),
        ([(22, 0, 84), (56, -8, 72), (90, -14, 44)], [5.5, 5, 3]),
        ([(22, 2, 84), (48, 28, 66), (66, 48, 34)], [5.5, 4.5, 3]),
        ([(20, 2, 84), (12, 28, 72), (-8, 46, 62)], [5, 4, 2.5]),
    ]
    return tuple(
        tube(space, [course[0], *(_near(space, *point, spread=4) for point in course[1:])], radii)
        for course, radii in courses
    )
