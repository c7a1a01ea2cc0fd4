"""`dsm-predict` end to end with a small untrained model, and every request it must refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from dsm_core.checkpoint import load_checkpoint, save_checkpoint
from dsm_core.classes import ATLAS
from dsm_core.config import Config, DataConfig, ModelConfig, TextConfig
from dsm_core.inference import Prediction
from dsm_core.model import build_model
from dsm_core.predict import main
from dsm_core.prediction_files import write_prediction
from dsm_core.text_building import build_text_space

REAL_SCAN = Path(__file__).parents[3] / "shared" / "data" / "totalsegmentator" / "example_ct.nii.gz"
NAMES = ("liver", "spleen", "liver tumor")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "best"
    torch.manual_seed(0)
    small = ModelConfig(
        name="small",
        widths=(8, 8, 8, 8),
        mamba_blocks=(0, 0, 0, 1),
        state_size=4,
        decoder_width=8,
        query_width=8,
        mask_width=4,
    )
    config = Config(model=small, data=DataConfig(spacing_mm=(6.0, 6.0, 6.0), patch=(32, 32, 32)))
    text = build_text_space([ATLAS[name] for name in NAMES], TextConfig())
    save_checkpoint(folder, build_model(config.model, text), config, text)
    return folder


AFFINE = np.array([[-3.0, 0, 0, 60], [0, 0, 4.0, -80], [0, -3.0, 0, 20], [0, 0, 0, 1]])


def write(path, values, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.fixture(scope="module")
def healthy(checkpoint, tmp_path_factory):
    """The same model with a prior that has begun to train, and organs that count as trained."""
    folder = tmp_path_factory.mktemp("run") / "last"
    kept = load_checkpoint(checkpoint)
    torch.nn.init.normal_(kept.model.prior.denoiser.out.weight, std=0.1)
    kept.model.class_rows.evidence[:] = torch.tensor([3.0, 0.0, 3.0])  # liver, liver tumor, spleen
    save_checkpoint(folder, kept.model, Config(model=kept.model_config, data=kept.data), kept.text)
    return folder


@pytest.fixture
def scan(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    generator = np.random.default_rng(0)
    values = np.full((36, 30, 40), -1000, dtype=np.int16)
    values[4:32, 4:26, 4:36] = generator.normal(40, 30, (28, 22, 32)).astype(np.int16)
    return write(tmp_path / "in" / "scan.nii.gz", values)


def refused(capsys, folder, *arguments):
    """Runs the command, wants exit code 2, one line on stderr and nothing written; returns the line."""
    before = sorted(folder.rglob("*"))
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before
    return error


def test_label_map_legend_and_probability_lie_in_the_scans_grid(checkpoint, scan, tmp_path, capsys):
    out = tmp_path / "out" / "found.nii.gz"
    queries = ["liver tumor", "liver", "abscess of the spleen"]
    flags = [part for query in queries for part in ("--query", query)]
    assert main([str(checkpoint), str(scan), *flags, "-o", str(out), "--probability", "--device", "cpu"]) == 0
    found, asked = nibabel.load(out), nibabel.load(scan)
    assert found.shape == asked.shape
    assert np.array_equal(found.affine, asked.affine)
    assert found.get_data_dtype() == np.uint8
    assert found.header["sform_code"] == asked.header["sform_code"]
    probability = nibabel.load(tmp_path / "out" / "found_probability.nii.gz")
    assert probability.shape == (*asked.shape, 3)
    assert probability.get_data_dtype() == np.float32
    assert np.array_equal(probability.affine, asked.affine)
    legend = json.loads((tmp_path / "out" / "found.json").read_text())
    assert legend["text_encoder"] == "hashed words (deterministic, not CLIP)"
    assert {query: row["value"] for query, row in legend["labels"].items()} == dict(
        zip(queries, (1, 2, 3), strict=True)
    )
    assert {row["kind"] for row in legend["labels"].values()} == {"lesion", "organ"}
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "found.json",
        "found.nii.gz",
        "found_probability.nii.gz",
    ]
    printed = capsys.readouterr().out
    assert "hashed words" in printed
    assert "free phrase" in printed


def test_lesions_are_painted_over_organs_and_later_over_earlier(tmp_path):
    masks = torch.zeros(3, 4, 1, 1, dtype=torch.bool)
    masks[0, 0:2], masks[1, 0:3], masks[2, 2:4] = True, True, True
    classes = tuple(ATLAS[name] for name in ("liver tumor", "liver", "spleen"))
    prediction = Prediction(classes, masks, torch.tensor([0.9, 0.8, 0.7]), np.eye(4))
    scan = nibabel.Nifti1Image(np.zeros((4, 1, 1), dtype=np.int16), np.eye(4))
    write_prediction(prediction, [info.name for info in classes], scan, tmp_path / "a.nii", None, "by hand")
    assert np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)[:, 0, 0].tolist() == [1, 1, 3, 3]
    assert json.loads((tmp_path / "a.json").read_text())["labels"]["liver"]["volume_ml"] == pytest.approx(0.003)


def test_anomaly_map_lies_in_the_scans_grid_and_needs_no_query(healthy, scan, tmp_path, capsys):
    out = tmp_path / "out" / "anomaly.nii.gz"
    assert main([str(healthy), str(scan), "--anomaly", str(out), "--device", "cpu"]) == 0
    found, asked = nibabel.load(out), nibabel.load(scan)
    assert found.shape == asked.shape
    assert np.array_equal(found.affine, asked.affine)
    assert found.get_data_dtype() == np.float32
    assert np.asarray(found.dataobj).min() >= 0
    assert [path.name for path in out.parent.iterdir()] == ["anomaly.nii.gz"]


def test_anomaly_map_beside_a_query(healthy, scan, tmp_path):
    out = tmp_path / "out"
    asked = ("--query", "liver tumor", "-o", str(out / "found.nii.gz"), "--anomaly", str(out / "anomaly.nii.gz"))
    assert main([str(healthy), str(scan), *asked, "--device", "cpu"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["anomaly.nii.gz", "found.json", "found.nii.gz"]


def test_model_without_a_trained_prior_is_named(checkpoint, scan, tmp_path, capsys):
    error = refused(capsys, tmp_path, checkpoint, scan, "--anomaly", tmp_path / "out" / "anomaly.nii.gz")
    assert "no trained prior" in error
    assert "prior.rounds" in error


def test_where_a_lesion_is_looked_for_is_said(healthy, scan, tmp_path, capsys):
    asked = [str(healthy), str(scan), "--query", "metastasis", "-o", str(tmp_path / "out" / "a.nii"), "--dry-run"]
    assert main(asked) == 0
    assert "looked for in the whole body" in capsys.readouterr().out
    assert main([*asked, "--host", "spleen"]) == 0
    assert "host spleen" in capsys.readouterr().out
    assert "'colon' is no organ" in refused(capsys, tmp_path, *asked, "--host", "colon")


def test_the_scans_text_fields_do_not_reach_the_output(checkpoint, scan, tmp_path):
    named = nibabel.load(scan)
    named.header["descrip"] = b"DOE JANE"
    nibabel.save(named, scan)
    out = tmp_path / "out" / "found.nii"
    assert main([str(checkpoint), str(scan), "--query", "liver", "-o", str(out)]) == 0
    assert b"DOE" not in out.read_bytes()


def test_dry_run_checks_and_writes_nothing(checkpoint, scan, tmp_path, capsys):
    out = tmp_path / "out" / "found.nii.gz"
    assert main([str(checkpoint), str(scan), "--query", "hepatic metastasis", "-o", str(out), "--dry-run"]) == 0
    assert list(out.parent.iterdir()) == []
    assert "would write" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scan": "in/absent.nii.gz"}, "no scan at"),
        ({"checkpoint": "absent"}, "no checkpoint folder"),
        ({"query": "  "}, "empty"),
        ({"query": "?!"}, "needs words"),
        ({"-o": "absent/found.nii.gz"}, "does not exist"),
        ({"-o": "out/found.png"}, r"ending in \.nii\.gz"),
        ({"-o": "in/scan.nii.gz"}, "overwrite the scan"),
        ({"--threshold": "1.5"}, "between 0 and 1"),
        ({"--device": "abacus"}, "--device abacus"),
        ({"--text-weights": "no-such-tag"}, "no-such-tag"),
    ],
)
def test_requests_that_cannot_be_answered(checkpoint, scan, tmp_path, capsys, change, message):
    request = {"checkpoint": checkpoint, "scan": "in/scan.nii.gz", "query": "liver", "-o": "out/found.nii.gz"} | change
    request = {
        key: tmp_path / value if key in ("scan", "-o", "checkpoint") else value for key, value in request.items()
    }
    flags = [part for key, value in request.items() if key.startswith("-") for part in (key, value)]
    arguments = (request["checkpoint"], request["scan"], "--query", request["query"], *flags)
    assert re.search(message, refused(capsys, tmp_path, *arguments))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is asked"),
        (["--query", "liver"], "--query without -o"),
        (["-o", "out/a.nii"], "nothing is asked"),
        (["-o", "out/a.nii", "--anomaly", "out/b.nii"], "-o without --query"),
        (["--query", "liver", "-o", "out/a.nii", "--anomaly", "out/a.nii"], "the same file"),
        (["--anomaly", "out/a.png"], r"--anomaly wants a name ending in \.nii\.gz"),
    ],
)
def test_requests_that_do_not_say_what_goes_where(checkpoint, scan, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refused(capsys, tmp_path, checkpoint, scan, *words))


def test_unreadable_and_truncated_scans(checkpoint, scan, tmp_path, capsys):
    out = tmp_path / "out" / "found.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-2000])
    assert "cannot be read" in refused(capsys, tmp_path, checkpoint, scan, "--query", "liver", "-o", out)
    scan.write_bytes(b"not a scan")
    assert "cannot be read" in refused(capsys, tmp_path, checkpoint, scan, "--query", "liver", "-o", out)


def test_four_dimensions_and_nan(checkpoint, scan, tmp_path, capsys):
    out = tmp_path / "out" / "found.nii.gz"
    write(scan, np.zeros((8, 8, 8, 3), dtype=np.int16))
    error = refused(capsys, tmp_path, checkpoint, scan, "--query", "liver", "-o", out)
    assert "found 4 dimensions (8, 8, 8, 3)" in error
    write(scan, np.full((8, 8, 8), np.nan, dtype=np.float32))
    assert "NaN" in refused(capsys, tmp_path, checkpoint, scan, "--query", "liver", "-o", out)


@pytest.mark.parametrize("kind", ["eight bits", "MR", "normalised", "label map", "shifted CT", "constant", "colour"])
def test_a_scan_that_is_not_ct_says_what_was_found(checkpoint, scan, tmp_path, capsys, kind):
    hu = np.asarray(nibabel.load(scan).dataobj).astype(np.float32)
    values = {
        "eight bits": ((hu.clip(-160, 240) + 160) * 0.6).astype(np.uint8),
        "MR": np.abs(hu).astype(np.float32),
        "normalised": (hu - hu.mean()) / hu.std(),
        "label map": (hu > 0).astype(np.uint8),
        "shifted CT": (hu + 1024).clip(0).astype(np.uint16),
        "constant": np.full_like(hu, -1000),
        "colour": np.zeros(hu.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
    }[kind]
    write(scan, values)
    out = tmp_path / "out" / "found.nii.gz"
    error = refused(capsys, tmp_path, checkpoint, scan, "--query", "liver", "-o", out)
    if kind == "colour":
        assert "cannot be read" in error
    else:
        assert re.search(r"does not look like CT .* values .* to .*--allow-non-ct", error)
        assert (
            main([str(checkpoint), str(scan), "--query", "liver", "-o", str(out), "--allow-non-ct", "--dry-run"]) == 0
        )


def test_a_full_disk_leaves_nothing_behind(checkpoint, scan, tmp_path, capsys, monkeypatch):
    real_save = nibabel.save

    def full_disk(image, path):
        if image.ndim == 4:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real_save(image, path)

    monkeypatch.setattr(nibabel, "save", full_disk)
    out = tmp_path / "out" / "found.nii.gz"
    queries = ("--query", "liver", "--query", "spleen", "--probability")
    assert main([str(checkpoint), str(scan), *queries, "-o", str(out)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_real_scan_keeps_shape_and_affine(checkpoint, tmp_path):
    if not REAL_SCAN.is_file():
        pytest.skip("shared/data/totalsegmentator is not here")
    out = tmp_path / "found.nii.gz"
    assert main([str(checkpoint), str(REAL_SCAN), "--query", "liver", "-o", str(out)]) == 0
    found, asked = nibabel.load(out), nibabel.load(REAL_SCAN)
    assert found.shape == asked.shape
    assert np.array_equal(found.affine, asked.affine)
