"""Which real tumour shapes can a generated patient have? Distance fields read from label maps in a folder.

The maps are KiTS style (Heller et al. 2023, arXiv:2307.01984): 1 kidney, 2 tumour, 3 cyst. Only shapes are taken, so a
tumour of the kidney serves in any host. Axis legend: `X Y Z` voxels of a shape's own window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from scipy.ndimage import distance_transform_edt, find_objects, generate_binary_structure, label, map_coordinates
from scipy.spatial.transform import Rotation

from dsm_core.data.phantoms.shapes import FAR_MM, Array, Shape, Space

TUMOR_VALUE = 2
LEAST_ML = 0.5  # a component below is a few voxels: no shape to learn from
_READERS = 2


class ShapeLibraryError(ValueError):
    """A folder of label maps gives no tumour shapes; the message says what was found and what is wanted."""


@dataclass(frozen=True)
class TumorShape:
    """One real tumour.

    Attributes:
        distance: (X, Y, Z) float32, mm to the surface, negative inside.
        spacing_mm: voxel size along each axis.
        centre: (3,) the deepest voxel; a curved tumour need not hold its centre of mass.
        diameter_mm: of the ball of equal volume.
    """

    distance: Array
    spacing_mm: Array
    centre: Array
    diameter_mm: float

    def placed(self, space: Space, centre: Array, diameter_mm: float, turn: Array) -> Shape:
        """The tumour in a patient, scaled to a diameter.

        Args:
            centre: mm in the standard anatomy. turn: rotation, (3, 3).
        """
        scale = diameter_mm / self.diameter_mm
        corners = np.stack([-self.centre, np.array(self.distance.shape) - 1 - self.centre]) * self.spacing_mm
        reach = scale * float(np.linalg.norm(np.abs(corners).max(0)))
        window = space.window(centre - reach, centre + reach)
        away = space.points[(slice(None), *window)] - np.asarray(centre, np.float32)[:, None, None, None]
        own = np.einsum("ji,jxyz->ixyz", turn / scale, away) / self.spacing_mm[:, None, None, None]
        places = own + self.centre[:, None, None, None]
        distance = map_coordinates(self.distance, places, order=1, cval=FAR_MM / scale) * scale
        return Shape(window, distance.astype(np.float32))


@dataclass(frozen=True)
class ShapeLibrary:
    """The tumours of a folder.

    Attributes:
        digest: SHA-256 (hex) of the folder's label maps, by content and in the order of their names.
    """

    shapes: tuple[TumorShape, ...]
    digest: str

    def draw(self, rng: np.random.Generator) -> tuple[TumorShape, Array]:
        """A tumour and a rotation, (3, 3), uniform over all rotations."""
        shape = self.shapes[int(rng.integers(len(self.shapes)))]
        return shape, Rotation.random(random_state=rng).as_matrix()


def folder_digest(folder: Path | str) -> str:
    """SHA-256 of the label maps in a folder, without reading any tumour.

    Raises:
        ShapeLibraryError: the folder is missing, holds no map, or one cannot be opened.
    """
    digest = hashlib.sha256()
    for path in _maps(Path(folder)):
        try:
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise ShapeLibraryError(f"phantom.lesion_shapes: {path.name} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def read_shapes(folder: Path | str) -> ShapeLibrary:
    """Every tumour of at least half a millilitre in the folder's label maps.

    Raises:
        ShapeLibraryError: no map, no tumour in any map, or maps that cannot be read; those are all named at once.
    """
    digest, paths = folder_digest(folder), _maps(Path(folder))
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_read, paths))
    if faults := [one for one in found if isinstance(one, str)]:
        raise ShapeLibraryError(
            f"phantom.lesion_shapes: {len(faults)} of {len(paths)} label maps cannot be used: {'; '.join(faults)}; "
            "mend or remove them"
        )
    shapes = tuple(shape for one in found if not isinstance(one, str) for shape in one)
    if not shapes:
        raise ShapeLibraryError(
            f"phantom.lesion_shapes: {len(paths)} label maps, and in none a component of value {TUMOR_VALUE} (tumour) "
            f"of at least {LEAST_ML} ml; wanted KiTS style maps (1 kidney, 2 tumour, 3 cyst)"
        )
    return ShapeLibrary(shapes, digest)


def tumor_shapes(values: Array, spacing_mm: Sequence[float]) -> list[TumorShape]:
    """The tumours of one label map, (X, Y, Z), largest first."""
    components, _ = label(values == TUMOR_VALUE, structure=generate_binary_structure(3, 3))
    spacing, shapes = np.asarray(spacing_mm, float), []
    for index, box in enumerate(find_objects(components), 1):
        mask = np.pad(components[box] == index, 4)  # a tumour made small still needs a margin of some mm
        volume_mm3 = float(mask.sum() * spacing.prod())
        if volume_mm3 < 1000 * LEAST_ML:
            continue
        # The surface runs between voxel centres: half a voxel nearer than the nearest voxel of the other side.
        half = spacing.mean() / 2
        inside = np.maximum(distance_transform_edt(mask, sampling=spacing) - half, 0)
        outside = np.maximum(distance_transform_edt(~mask, sampling=spacing) - half, 0)
        centre = np.array(np.unravel_index(inside.argmax(), mask.shape))
        diameter_mm = (6 * volume_mm3 / np.pi) ** (1 / 3)
        shapes.append(TumorShape((outside - inside).astype(np.float32), spacing, centre, diameter_mm))
    return sorted(shapes, key=lambda shape: -shape.diameter_mm)


def _maps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ShapeLibraryError(f"phantom.lesion_shapes={folder.name} is no folder; wanted one of NIfTI label maps")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise ShapeLibraryError(f"phantom.lesion_shapes={folder.name} holds no label map (*.nii.gz, *.nii)")
    return paths


def _read(path: Path) -> list[TumorShape] | str:
    """The tumours of a file, or what is wrong with it."""
    try:
        image = nib.load(path)  # type: ignore[attr-defined]
        values = np.asarray(image.dataobj)  # type: ignore[attr-defined]
        spacing = [float(size) for size in image.header.get_zooms()[:3]]  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        return f"{path.name} ({type(error).__name__} while reading)"
    if values.ndim != 3 or not np.isfinite(spacing).all() or min(spacing) <= 0:
        return f"{path.name} ({values.ndim} axes, spacing {spacing} mm; wanted 3 axes and lengths above 0)"
    if not np.array_equal(values, np.round(values)):
        return f"{path.name} (values that are not whole numbers)"
    return tumor_shapes(values, spacing)
