"""Are the scans of a site's folder sound? Opens every NIfTI file and gathers every fault (nibabel and numpy only)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

from dsm_core.classes import ClassKind
from dsm_core.data.datalist import Case, Datalist, gather_datalist
from dsm_core.data.faults import DatalistError, Fault
from dsm_core.data.fingerprint import Fingerprint, case_fingerprint

# Image and label map may differ by rounding in their headers: at most a tenth of a voxel at any corner.
_CORNER_TOLERANCE = 0.1


@dataclass
class Inspection:
    """What was found in a folder. `faults` forbid its use; `warnings` want a look."""

    datalist: Datalist
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)


def check_folder(root: Path | str) -> list[Fault]:
    """Every fault of a site's folder, of `dataset.json` and of each scan; empty where it can be used."""
    return inspect_folder(root).faults


def summarise(datalist: Datalist) -> Fingerprint:
    """The fingerprint of a site's annotated cases.

    Raises:
        DatalistError: a scan is at fault.
    """
    inspection = _inspect_cases(Inspection(datalist), check_values=True)
    if inspection.faults:
        raise DatalistError(datalist.site, inspection.faults)
    return inspection.fingerprint


def inspect_folder(root: Path | str, site: str | None = None) -> Inspection:
    """Read a folder and open every scan in it; never raises for what the folder holds."""
    datalist, faults = gather_datalist(Path(root), site)
    inspection = Inspection(datalist, faults)
    for name in sorted(set(datalist.values) - set(datalist.labelled_classes)):
        inspection.warnings.append(
            Fault("dataset.json", f"the class {name!r} in no case", "classes that a case annotates")
        )
    # Values of classes that could not be read are not "outside labels".
    return _inspect_cases(inspection, check_values=not any(fault.file == "dataset.json" for fault in faults))


def _inspect_cases(inspection: Inspection, check_values: bool) -> Inspection:
    for case in inspection.datalist.cases:
        _inspect_case(case, inspection, check_values)
    return inspection


def _inspect_case(case: Case, inspection: Inspection, check_values: bool) -> None:
    datalist = inspection.datalist
    image_file, label_file = (
        path.relative_to(datalist.root).as_posix() if path else "" for path in (case.image, case.label)
    )
    image, faults = open_scan(case.image, image_file)
    inspection.faults += faults
    if image is not None and (strange := _strange_intensities(image[0])):
        inspection.warnings.append(Fault(image_file, strange, "CT in Hounsfield units, with air around -1000"))
    if case.label is None:
        return
    label, faults = open_scan(case.label, label_file)
    inspection.faults += faults
    if label is None:
        return
    painted = np.unique(label[0])
    known = {0, *(value for values in datalist.regions.values() for value in values)}
    if check_values and (unknown := [float(value) for value in painted if float(value) not in known]):
        found = f"{len(unknown)} label value(s) outside `labels`: {', '.join(f'{v:g}' for v in unknown[:8])}"
        inspection.faults.append(Fault(label_file, found, "only the mask values that `labels` names"))
        return
    for name in case.annotated:
        if datalist.classes[name].kind is ClassKind.ORGAN and not set(datalist.mask_values(name)) & set(painted):
            wanted = "annotated organs in the scan; else leave them out of `annotated` (unknown is not background)"
            inspection.warnings.append(Fault(label_file, f"no voxel of {name!r}, which is annotated", wanted))
    if image is None:
        return
    grid = grid_fault(label_file, (image[0].shape, image[1]), (label[0].shape, label[1]))
    if grid:
        inspection.faults.append(grid)
    elif case.annotated:
        inspection.fingerprint += case_fingerprint(*_ras_grid(*image), image[0][label[0] > 0])


def open_scan(path: Path, shown: str) -> tuple[tuple[np.ndarray, np.ndarray] | None, list[Fault]]:
    """Voxels (X, Y, Z) as stored (scaled) and affine (4, 4) of a NIfTI file, or its faults, under the name `shown`."""
    try:
        scan = nibabel.load(path)
        voxels, affine = np.asanyarray(scan.dataobj), np.asarray(scan.affine, dtype=np.float64)  # type: ignore[attr-defined]
    except Exception as error:  # nibabel, zlib and the file system each raise their own on a broken file
        found = f"an unreadable file ({type(error).__name__}; truncated, or not NIfTI)"
        return None, [Fault(shown, found, "complete NIfTI files")]
    faults = []
    if voxels.ndim != 3 or not voxels.size:
        faults.append(Fault(shown, f"{voxels.ndim} dimensions {voxels.shape}", "3-D scans, one volume a file"))
    if voxels.dtype.kind not in "iuf":
        faults.append(Fault(shown, f"voxels of type {voxels.dtype}", "integer or float voxels"))
    elif voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        found = f"{np.count_nonzero(~np.isfinite(voxels))} voxels that are NaN or infinite"
        faults.append(Fault(shown, found, "finite values in every voxel"))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        faults.append(Fault(shown, "an affine that is not finite or not invertible", "an affine from voxels to mm"))
    return (None if faults else (voxels, affine)), faults


def grid_fault(
    shown: str, image: tuple[Sequence[int], np.ndarray], label: tuple[Sequence[int], np.ndarray]
) -> Fault | None:
    """The fault of a label map that lies off its image's grid, each given as (shape, affine); else None."""
    (image_shape, image_affine), (label_shape, label_affine) = image, label
    if tuple(image_shape) != tuple(label_shape):
        found = f"a label map of {tuple(label_shape)} voxels for an image of {tuple(image_shape)}"
        return Fault(shown, found, "label maps with the shape of their image")
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, length) for length in image_shape))])
    shift_mm = np.linalg.norm((corners @ (image_affine - label_affine).T)[:, :3], axis=1).max()
    if shift_mm > _CORNER_TOLERANCE * np.linalg.norm(image_affine[:3, :3], axis=0).min():
        found = f"a label map that lies {shift_mm:.3g} mm off its image"
        return Fault(shown, found, "label maps with the affine of their image")
    return None


def _ras_grid(voxels: np.ndarray, affine: np.ndarray) -> tuple[list[float], list[int]]:
    axes = np.argsort(nibabel.io_orientation(affine)[:, 0])
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return [float(lengths[axis]) for axis in axes], [voxels.shape[axis] for axis in axes]


def _strange_intensities(voxels: np.ndarray) -> str | None:
    low, high = float(voxels.min()), float(voxels.max())
    has_air, has_range = low <= -200, high - low >= 100
    return None if has_air and has_range else f"intensities from {low:g} to {high:g}"
