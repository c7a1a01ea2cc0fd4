"""`dsm-site check` tells a person and a program the same, and its exit code tells both."""

import json

import nibabel
import numpy as np
import pytest

from client.cli import main
from client.site import check_site
from dsm_core.data import LabelContract


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "north"
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    training = []
    for number in range(2):
        for sub, voxels in (("imagesTr", (label * 1060.0 - 1000).astype(np.int16)), ("labelsTr", label)):
            (root / sub).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1])), root / sub / f"pt_{number}.nii.gz")
        training.append({"image": f"imagesTr/pt_{number}.nii.gz", "label": f"labelsTr/pt_{number}.nii.gz"})
    content = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}, "training": training}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_a_sound_folder_is_summarised(folder, capsys):
    assert main(["check", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "Site north: sound" in text
    assert "2 cases, 2 of them annotated" in text
    assert any(line.split() == ["liver", "1", "organ", "-", "2"] for line in text.splitlines())
    assert "2.00 ± 0.00   2.00 ± 0.00   5.00 ± 0.00" in text
    assert "60 ± 0" in text


def test_json_says_the_same(folder, capsys):
    assert main(["check", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["is_sound"]
    assert report["faults"] == []
    assert report["classes"] == {"liver": {"value": 1, "kind": "organ", "host": None, "cases": 2}}
    assert report["spacing_mm"]["mean"] == [2, 2, 5]
    assert report["size"]["mean"] == [8, 8, 8]
    assert report["labelled_hu"]["mean"] == 60
    assert LabelContract.from_dict(report["contract"]) == check_site(folder).contract


def test_every_fault_is_printed_and_the_exit_code_is_1(folder, capsys):
    (folder / "imagesTr/pt_0.nii.gz").write_bytes(b"broken")
    (folder / "labelsTr/pt_1.nii.gz").unlink()
    assert main(["check", str(folder)]) == 1
    text = capsys.readouterr().out
    assert "2 fault(s)" in text
    assert "imagesTr/pt_0.nii.gz: found an unreadable file" in text
    assert "labelsTr/pt_1.nii.gz: found no such file; wanted the label map" in text
    assert main(["check", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["contract"] is None
    assert {fault["file"] for fault in report["faults"]} == {"imagesTr/pt_0.nii.gz", "labelsTr/pt_1.nii.gz"}


def test_no_folder_is_a_fault_and_no_command_a_usage_error(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent")]) == 1
    assert "no such folder" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
