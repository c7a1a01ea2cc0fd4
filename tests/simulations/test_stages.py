"""The main job, tiny: sites on disk, rounds through Flower's apps, baselines, matrix, report."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

import client.app
from client.ledger import LEDGER_NAME, Ledger
from dsm_core.checkpoint import load_checkpoint
from dsm_core.stages import STAGES
from simulations.run import main

SMALL = [
    "sites=2", "rounds=2", "prior.rounds=1", "tumors.rounds=2", "train.local_steps=1", "train.batch=1", "train.crops=2",
    "phantom.cases=2", "phantom.held_out=1", "data.spacing_mm=[8,8,8]", "data.patch=[32,32,32]", "data.crop=[16,16,16]",
    "model.widths=[8,8,16,16]", "model.mamba_blocks=[0,0,0,1]", "model.decoder_width=16", "model.query_width=16",
    "model.mask_width=8", "model.prior_widths=[8,8,8]", "model.lesion_width=8", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main([*SMALL, f"out={root}", "name=tiny", "compare=all"]) == 0
    return root


def test_matrix_has_every_method_site_and_class_with_its_status(out: Path) -> None:
    rows = json.loads((out / "tiny" / "matrix.json").read_text())
    assert {row["method"] for row in rows} == {"federated", "fedavg", "local", "pooled"}
    cells = {(row["method"], row["site"], row["class"]) for row in rows}
    assert len(cells) == len(rows) == 4 * 2 * 11
    status = {(row["site"], row["class"]): row["status"] for row in rows}
    assert status["site_a", "kidney tumor"] == "local"
    assert status["site_b", "kidney tumor"] == "foreign"
    assert {status[site, "spleen tumor"] for site in ("site_a", "site_b")} == {"unseen"}


def test_methods_take_the_same_number_of_steps(out: Path) -> None:
    info = json.loads((out / "tiny" / "run.json").read_text())
    assert {method["steps_total"] for method in info["methods"].values()} == {2 * 1 * 5}
    lines = [json.loads(line) for line in (out / "tiny" / "history.jsonl").read_text().splitlines()]
    rounds = {method: sum(line["method"] == method for line in lines) for method in info["methods"]}
    assert rounds == {"federated": 5, "fedavg": 5, "local": 10, "pooled": 10}
    in_stage = {m: [line["stage"] for line in lines if line["method"] == m] for m in info["methods"]}
    for method, times in {"federated": 1, "fedavg": 1, "local": 2, "pooled": 2}.items():
        held = {stage: in_stage[method].count(stage) for stage in STAGES}
        assert held == {"organs": 2 * times, "prior": times, "tumors": 2 * times}
    assert info["finished"] is True
    assert "not CLIP" in info["text_encoder"]


def test_report_and_checkpoints_are_written(out: Path) -> None:
    report = (out / "tiny" / "report.html").read_text()
    assert "spleen tumor" in report
    assert all(f"Training loss, stage {stage}" in report for stage in STAGES)
    assert "departure from health" in report
    assert "<script src" not in report
    for name in ("last", "best"):
        checkpoint = load_checkpoint(out / "tiny" / "checkpoints" / name)
        assert "kidney tumor" in checkpoint.text.names
        assert checkpoint.model.class_rows.evidence.sum() > 0


def test_same_seed_gives_the_same_model_bit_for_bit(out: Path) -> None:
    assert main([*SMALL, f"out={out}", "name=again", "compare=none"]) == 0
    once, again = ((out / name / "checkpoints/last/model.safetensors").read_bytes() for name in ("tiny", "again"))
    assert once == again


def test_run_folder_is_never_overwritten(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, f"out={out}", "name=tiny"]) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("round=3", "round"),
        ("sites=0", "sites wants at least 1"),
        ("sites_dir=nowhere", "is no folder"),
        ("train.lr=-1", "positive"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    word: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, f"out={tmp_path / 'runs'}"]) == 2
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_dry_run_trains_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, f"out={out}", "name=dry", "dry_run=true"]) == 0
    assert "site_b" in capsys.readouterr().out
    assert not (out / "dry").exists()


def test_broken_scans_of_all_sites_are_named_before_round_one(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(next((out / "sites").iterdir()), tmp_path / "sites")
    for site in ("site_a", "site_b"):
        scan = next((tmp_path / "sites" / site / "imagesTr").iterdir())
        scan.write_bytes(scan.read_bytes()[:2000])
    assert main([*SMALL, f"sites_dir={tmp_path / 'sites'}", f"out={tmp_path / 'runs'}"]) == 2
    printed = capsys.readouterr().err
    assert "site_a/imagesTr/" in printed
    assert "site_b/imagesTr/" in printed
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_any_site_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"sites_dir={tmp_path}", f"out={tmp_path / 'runs'}"]) == 2
    assert "holds no site" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_every_site_failing_ends_the_program_with_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in ("east", "west"):
        for part, value in (("imagesTr", 40), ("labelsTr", 1)):
            (tmp_path / "sites" / site / part).mkdir(parents=True)
            scan = nibabel.Nifti1Image(np.full((4, 4, 4), value, np.int16), np.eye(4))
            for case in range(2):
                nibabel.save(scan, tmp_path / "sites" / site / part / f"doe_{case}.nii.gz")
        content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}}
        (tmp_path / "sites" / site / "dataset.json").write_text(json.dumps(content))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "/home/doe_0.nii.gz")

    monkeypatch.setattr(client.app, "train_round", fail)
    assert main([*SMALL, f"sites_dir={tmp_path / 'sites'}", f"out={tmp_path / 'runs'}", "name=lost"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dsm-simulate:")][-1]
    assert "round 1: 0 of 2 sites" in said
    assert "east: OSError (No space left on device) at the site" in said
    assert "doe" not in said
    assert json.loads((tmp_path / "runs/lost/run.json").read_text())["finished"] is False
    assert not (tmp_path / "runs/lost/report.html").exists()


def test_run_starts_from_the_checkpoint_of_another_and_zero_rounds_score_it_alone(out: Path) -> None:
    public = out / "tiny" / "checkpoints" / "last"
    words = [f"out={out}", f"start={public}", "compare=none", "overlays=0"]
    assert main([*SMALL, *words, "name=alone", "rounds=0", "prior.rounds=0", "tumors.rounds=0"]) == 0
    weights = "checkpoints/last/model.safetensors"
    assert (out / "alone" / weights).read_bytes() == (out / "tiny" / weights).read_bytes()
    scores = {
        name: {
            (row["site"], row["class"]): row["dice"]
            for row in json.loads((out / name / "matrix.json").read_text())
            if row["method"] == "federated"
        }
        for name in ("tiny", "alone")
    }
    assert scores["alone"] == scores["tiny"]
    assert json.loads((out / "alone" / "run.json").read_text())["start"]["round"] == 5
    assert "Started from" in (out / "alone" / "report.html").read_text()


def test_checkpoint_of_other_sizes_is_refused_before_sites_are_made(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"start={out / 'tiny/checkpoints/last'}", f"out={out / 'fresh'}", "model.query_width=32"]
    assert main([*SMALL, *words]) == 2
    assert "query_width 16, wanted 32" in capsys.readouterr().err
    assert not (out / "fresh").exists()


def test_a_private_run_says_what_each_site_has_spent_whatever_becomes_of_its_ledger(out: Path, tmp_path: Path) -> None:
    sites = next((out / "sites").iterdir())
    folders = {name: tmp_path / "sites" / name for name in ("site_a", "site_b")}
    for name, folder in folders.items():
        shutil.copytree(sites / name, folder)
    own = Ledger(folders["site_b"] / LEDGER_NAME, "site_b")
    own.create(epsilon=9.0, delta=0.1)
    own.path.write_bytes(own.path.read_bytes().replace(b"9.0", b"90.0"))
    words = [
        *SMALL[1:], "prior.rounds=0", "tumors.rounds=0", "compare=none", "server.quorum=0.5", f"out={tmp_path}",
        f"sites_dir={tmp_path / 'sites'}", f"eval_dir={sites / 'eval'}",
        "privacy.mode=dp_sgd", "privacy.accountant=rdp",
    ]  # fmt: skip
    assert main([*words, "rounds=1", "name=private"]) == 0
    spent = json.loads((tmp_path / "private" / "run.json").read_text())["privacy"]
    assert spent["asked"] == {"epsilon": 8.0, "clip_norm": 1.0, "trained": "everything"}
    assert 0 < spent["federated"]["site_a"]["epsilon"] <= 8
    assert spent["federated"]["site_a"]["steps"] == 1
    assert "cannot be read" in spent["federated"]["site_b"]["fault"]
    report = (tmp_path / "private" / "report.html").read_text()
    assert '<section id="privacy">' in report
    assert f"{tmp_path}" not in report[report.index('<section id="privacy">') : report.index('<section id="settings">')]


def test_a_delta_that_promises_nothing_is_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private = ("privacy.mode=dp_sgd", "privacy.delta=0.9", "compare=none", "prior.rounds=0", "tumors.rounds=0")
    assert main([*SMALL, *private, f"out={out}", "name=careless"]) == 2
    assert "delta" in capsys.readouterr().err
