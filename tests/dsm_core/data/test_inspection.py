"""Broken scans are found, all at once, and sound ones are summarised."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dsm_core.data import DatalistError, check_folder, inspect_folder, read_datalist, summarise

REAL = Path(__file__).parents[3].parent / "shared/data"


def _rewrite(path, change=lambda voxels: voxels, affine=None, dtype=None):
    image = nibabel.load(path)
    voxels = change(np.asanyarray(image.dataobj).copy())
    nibabel.save(
        nibabel.Nifti1Image(voxels.astype(dtype or voxels.dtype), image.affine if affine is None else affine), path
    )


def _put(value):
    def change(voxels):
        voxels[0, 0, 0] = value
        return voxels

    return change


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _nan_affine(path):
    image = nibabel.load(path)
    image.header["srow_x"] = np.nan
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    broken = nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    raw = bytearray(broken.to_bytes())
    raw[:348] = image.header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)))


IMAGE, LABEL = "imagesTr/pt_0.nii.gz", "labelsTr/pt_0.nii.gz"
BROKEN = {
    "truncated image": (IMAGE, _truncate, "unreadable"),
    "truncated label": (LABEL, _truncate, "unreadable"),
    "not NIfTI": (IMAGE, lambda path: path.write_bytes(b"hello"), "unreadable"),
    "empty file": (LABEL, lambda path: path.write_bytes(b""), "unreadable"),
    "value outside labels": (LABEL, lambda path: _rewrite(path, _put(7)), "outside `labels`: 7"),
    "half a value": (LABEL, lambda path: _rewrite(path, lambda v: _put(1.5)(v.astype(np.float32))), "1.5"),
    "label of another shape": (LABEL, lambda path: _rewrite(path, lambda v: v[:-1]), "(23, 20, 16) voxels"),
    "label elsewhere": (LABEL, lambda path: _rewrite(path, affine=np.diag([2.0, 2.0, 2.9, 1])), "mm off its image"),
    "label mirrored": (LABEL, lambda path: _rewrite(path, affine=np.diag([-2.0, 2.0, 3.0, 1])), "mm off its image"),
    "4-D image": (IMAGE, lambda path: _rewrite(path, lambda v: np.stack([v, v], -1)), "4 dimensions"),
    "NaN voxel": (
        IMAGE,
        lambda path: _rewrite(path, lambda v: _put(np.nan)(v.astype(np.float32))),
        "1 voxels that are NaN",
    ),
    "NaN affine": (IMAGE, _nan_affine, "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_scan_is_one_fault_with_its_file(make_site, name):
    root = make_site()
    file, damage, found = BROKEN[name]
    damage(root / file)
    faults = check_folder(root)
    assert [fault.file for fault in faults] == [file]
    assert found in faults[0].found
    assert "pt_0" not in faults[0].wanted


def test_faults_of_json_and_of_scans_come_together(make_site):
    def edit(content):
        content["training"][2]["annotated"] = ["heart"]

    root = make_site(cases=4, edit=edit)
    _truncate(root / "imagesTr/pt_0.nii.gz")
    _rewrite(root / "labelsTr/pt_1.nii.gz", _put(9))
    (root / "labelsTr/pt_3.nii.gz").unlink()
    found = {(fault.file, fault.found.split("(")[0].strip()) for fault in check_folder(root)}
    assert found == {
        ("imagesTr/pt_2.nii.gz", "annotated ['heart']"),
        ("labelsTr/pt_3.nii.gz", "no such file"),
        ("imagesTr/pt_0.nii.gz", "an unreadable file"),
        ("labelsTr/pt_1.nii.gz", "1 label value"),
    }


def test_rounding_in_a_header_is_no_fault(make_site):
    root = make_site()
    _rewrite(root / LABEL, affine=np.diag([2.0001, 2.0, 3.0, 1]))
    assert check_folder(root) == []


def test_warnings_ask_for_a_look(make_site):
    def edit(content):
        content["labels"]["3"] = "spleen"
        content["labels"]["4"] = "stomach"
        for item in content["training"]:
            item["annotated"] = ["liver", "spleen"]

    root = make_site(edit=edit)
    _rewrite(root / IMAGE, lambda v: (v > 0) * 100, dtype=np.int16)
    inspection = inspect_folder(root)
    assert inspection.faults == []
    told = [warning.found for warning in inspection.warnings]
    assert "intensities from 0 to 100" in told
    assert told.count("no voxel of 'spleen', which is annotated") == 2
    assert "the class 'stomach' in no case" in told


def test_summary_has_the_numbers_of_the_scans(make_site):
    root = make_site(axcodes="LPS")
    fingerprint = summarise(read_datalist(root))
    assert fingerprint.cases == 2
    assert [m.mean for m in fingerprint.spacing_mm] == [2.0, 2.0, 3.0]
    assert [m.mean for m in fingerprint.size] == [24, 20, 16]
    scans = [
        [nibabel.load(root / f"{sub}/pt_{n}.nii.gz").get_fdata() for sub in ("imagesTr", "labelsTr")] for n in (0, 1)
    ]
    labelled = np.concatenate([hu[label > 0] for hu, label in scans])
    assert fingerprint.intensity_hu.count == labelled.size == sum(fingerprint.histogram)
    assert fingerprint.intensity_hu.mean == pytest.approx(labelled.mean())
    assert fingerprint.intensity_hu.sd == pytest.approx(labelled.std())
    assert abs(fingerprint.quantile_hu(0.5) - np.median(labelled)) <= 8
    _truncate(root / IMAGE)
    with pytest.raises(DatalistError, match="complete NIfTI"):
        summarise(read_datalist(root))


@pytest.mark.skipif(not REAL.is_dir(), reason="real CT in ../shared/data is absent")
@pytest.mark.parametrize("folder", ["head_neck/site_c", "head_neck/eval", "sarcoma/site_e"])
def test_real_folders_are_sound(folder):
    inspection = inspect_folder(REAL / folder)
    assert inspection.faults == []
    assert inspection.fingerprint.cases == len(inspection.datalist.cases)
