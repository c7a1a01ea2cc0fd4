"""Small site folders on disk: a liver (value 1) with a tumour (value 2), in any layout, storage and orientation."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

SPACING_MM = (2.0, 2.0, 3.0)


def write_scan(path: Path, voxels: np.ndarray, spacing_mm=SPACING_MM, axcodes: str = "RAS", affine=None) -> Path:
    """Save voxels given in RAS order, stored in another orientation but lying at the same place."""
    if affine is None:
        affine = np.diag([*spacing_mm, 1.0])
    image = nibabel.Nifti1Image(voxels, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axcodes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)
    return path


def scan_voxels(seed: int, shape=(24, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    """HU image (int16) and label map (uint8)."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[4:16, 4:14, 3:12] = 1
    label[6:10, 6:10, 5:9] = 2
    hu = np.array([-1000, 60, 90])[label] + rng.integers(-5, 6, shape)
    return hu.astype(np.int16), label


@pytest.fixture
def make_site(tmp_path):
    """Write a folder and return it; `edit` changes the content of dataset.json before it is written."""

    def make(name="site_x", cases=2, layout="msd", axcodes="RAS", dtype=np.int16, edit=None, listed=True) -> Path:
        root, suffix = tmp_path / name, "_0000" if layout == "nnunet" else ""
        content = {
            "msd": {"labels": {"0": "background", "1": "liver", "2": "liver tumor"}, "modality": {"0": "CT"}},
            "nnunet": {"labels": {"background": 0, "liver": 1, "liver tumor": 2}, "channel_names": {"0": "CT"}},
        }[layout]
        training = []
        for number in range(cases):
            hu, label = scan_voxels(number)
            write_scan(root / f"imagesTr/pt_{number}{suffix}.nii.gz", hu.astype(dtype), axcodes=axcodes)
            write_scan(root / f"labelsTr/pt_{number}.nii.gz", label, axcodes=axcodes)
            training.append({"image": f"./imagesTr/pt_{number}.nii.gz", "label": f"./labelsTr/pt_{number}.nii.gz"})
        if listed:
            content["training"] = training
        content = (edit(content) if edit else None) or content
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return make
