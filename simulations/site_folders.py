"""How a generated site is stored: `dataset.json`, images and masks, in the site's own layout, orientation and type.

Sites differ as hospitals do. Even ones follow the Medical Segmentation Decathlon and store int16, odd ones follow
nnU-Net and store float32; the orientation of the voxels goes round over RAS, LPS and LAS.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from dsm_core.classes import ATLAS, ClassKind
from dsm_core.data.phantoms import PhantomCase

ORIENTATIONS = ("RAS", "LPS", "LAS")


@dataclass(frozen=True)
class SiteFolder:
    """A folder to be written.

    Attributes:
        path: where it lies.
        index: the site's place among the sites; it chooses layout, orientation and type.
        classes: what the site labels; mask value = place + 1.
        annotated: for every case, the classes drawn in it.
        title: the data set's name in `dataset.json`.
    """

    path: Path
    index: int
    classes: tuple[str, ...]
    annotated: tuple[tuple[str, ...], ...]
    title: str

    @property
    def is_nnunet(self) -> bool:
        return self.index % 2 == 1

    def image_path(self, case: int) -> Path:
        return self.path / "imagesTr" / f"case_{case:03d}{'_0000' if self.is_nnunet else ''}.nii.gz"

    def label_path(self, case: int) -> Path:
        return self.path / "labelsTr" / f"case_{case:03d}.nii.gz"


def write_datalist(folder: SiteFolder) -> None:
    """Create the folder with its `dataset.json`; an nnU-Net site lists its cases only where some are partly drawn."""
    for part in ("imagesTr", "labelsTr"):
        (folder.path / part).mkdir(parents=True)
    content: dict = {"name": folder.title, "description": "Generated, not from patients", "tensorImageSize": "3D"}
    if folder.is_nnunet:
        content |= {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
        content["labels"] = {"background": 0, **{name: value for value, name in enumerate(folder.classes, 1)}}
    else:
        content["modality"] = {"0": "CT"}
        content["labels"] = {"0": "background", **{str(value): name for value, name in enumerate(folder.classes, 1)}}
    content["numTraining"] = len(folder.annotated)
    if not folder.is_nnunet or set(folder.annotated) != {folder.classes}:
        content["training"] = [_entry(folder, case) for case in range(len(folder.annotated))]
    (folder.path / "dataset.json").write_text(json.dumps(content, indent=1))


def _entry(folder: SiteFolder, case: int) -> dict:
    paths = {"image": folder.image_path(case), "label": folder.label_path(case)}
    entry: dict = {key: f"./{path.relative_to(folder.path).as_posix()}" for key, path in paths.items()}
    if folder.annotated[case] != folder.classes:
        entry["annotated"] = list(folder.annotated[case])
    return entry


def write_case(folder: SiteFolder, case: int, made: PhantomCase) -> None:
    """Store the scan and the mask of the classes drawn in it; a tumour lies over its organ."""
    mask = np.zeros(made.truth.shape, np.uint8)
    for name in sorted(folder.annotated[case], key=lambda name: ATLAS[name].kind is ClassKind.LESION):
        mask[made.mask(name)] = 1 + folder.classes.index(name)
    # Quarters of a HU: float32 noise in full precision would not compress.
    image = np.round(made.image_hu * 4) / 4 if folder.is_nnunet else np.round(made.image_hu).astype(np.int16)
    _write_nifti(folder.image_path(case), image, made.spacing_mm, ORIENTATIONS[folder.index % len(ORIENTATIONS)])
    _write_nifti(folder.label_path(case), mask, made.spacing_mm, ORIENTATIONS[folder.index % len(ORIENTATIONS)])


def _write_nifti(path: Path, voxels: np.ndarray, spacing_mm: Sequence[float], orientation: str) -> None:
    """Store RAS+ voxels in another orientation; no time stamp, so that equal voxels give equal bytes."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(voxels.shape) - 1) / 2 * spacing_mm
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(orientation))
    image = nib.Nifti1Image(voxels, affine).as_reoriented(turn)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
