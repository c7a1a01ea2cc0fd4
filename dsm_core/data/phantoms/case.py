"""What is one generated case: a patient's abdominal CT in HU, with the truth for every organ and tumour in it.

Everything is drawn from the seed: equal seeds give equal voxels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from dsm_core.classes import ATLAS
from dsm_core.data.phantoms.anatomy import draw_organs
from dsm_core.data.phantoms.canvas import Canvas
from dsm_core.data.phantoms.lesions import HABITS, Lesion, draw_lesions, make_room
from dsm_core.data.phantoms.scanner import Scanner, record
from dsm_core.data.phantoms.shape_library import ShapeLibrary
from dsm_core.data.phantoms.shapes import Array, deformed_space
from dsm_core.data.phantoms.surroundings import draw_trunk, paint_trunk
from dsm_core.data.phantoms.tissues import CONTRASTS, paint_organs

PHANTOM_ORGANS = ("liver", "spleen", "kidney", "pancreas", "stomach", "aorta", "vertebrae")
PHANTOM_LESIONS = tuple(HABITS)
PHANTOM_CLASSES = PHANTOM_ORGANS + PHANTOM_LESIONS


@dataclass(frozen=True)
class PhantomCase:
    """A generated scan.

    Attributes:
        image_hu: (X, Y, Z) float32 in RAS+ order.
        truth: (X, Y, Z) uint8, 0 or 1 + the index in `names`; a tumour hides the organ below it.
        names: the classes of the truth.
        spacing_mm: voxel size along x, y, z.
    """

    image_hu: Array
    truth: Array
    names: tuple[str, ...]
    spacing_mm: tuple[float, float, float]

    def mask(self, name: str) -> Array:
        """The voxels of a class, (X, Y, Z) bool; an organ holds its tumours."""
        members = [name, *(lesion for lesion in PHANTOM_LESIONS if ATLAS[lesion].host == name)]
        return np.isin(self.truth, [1 + self.names.index(member) for member in members])


def generate_case(
    seed: int | Sequence[int],
    lesions: Collection[str],
    scanner: Scanner,
    size_mm: Sequence[float] = (320.0, 256.0, 256.0),
    library: ShapeLibrary | None = None,
    contrast: str = "portal",
) -> PhantomCase:
    """One patient with one to three tumours of every named kind, on one scanner. Another scanner, the same patient.

    Args:
        library: real tumour shapes, instead of drawn ones.
        contrast: "portal" or "native", a scan with or without contrast agent.

    Raises:
        ValueError: a kind of tumour that no generated patient can have.
    """
    unknown = sorted(set(lesions) - set(PHANTOM_LESIONS))
    if unknown:
        raise ValueError(f"generated patients can have {', '.join(PHANTOM_LESIONS)}; found {', '.join(unknown)}")
    patient, machine = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    image, truth = record(_draw_patient(patient, lesions, size_mm, library, contrast), scanner, machine)
    return PhantomCase(image, truth, PHANTOM_CLASSES, scanner.spacing_mm)


def _draw_patient(
    rng: np.random.Generator,
    kinds: Collection[str],
    size_mm: Sequence[float],
    library: ShapeLibrary | None,
    contrast: str,
) -> Canvas:
    space = deformed_space(rng, size_mm)
    trunk = draw_trunk(space)
    organs = draw_organs(space, trunk.cavity, trunk.lung)
    hosts = organs.hosts
    lesions: dict[str, list[Lesion]] = {}
    for kind in PHANTOM_LESIONS:
        if kind in kinds:
            host = str(ATLAS[kind].host)
            lesions[host] = draw_lesions(space, kind, hosts[host], trunk.cavity, library)
            others = [shape for other, shapes in hosts.items() if other != host for shape in shapes]
            make_room(lesions[host], [*others, organs.stomach])
    canvas = Canvas(space, PHANTOM_CLASSES)
    paint_trunk(canvas, trunk)
    paint_organs(canvas, organs, lesions, CONTRASTS[contrast])
    return canvas
