"""The site's commands that ask the coordinator, end to end: text space, enrolment, phrases, a prediction, progress."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from client import consortium_commands, predict_command
from client.bank_cache import BANK
from dsm_core import predict
from dsm_core.checkpoint import save_checkpoint
from dsm_core.config import Config, DataConfig, ModelConfig, TextConfig
from dsm_core.model import build_model
from strategies.audit import AuditLog, Head

SMALL = ModelConfig(
    name="small",
    widths=(8, 8, 8, 8),
    mamba_blocks=(0, 0, 0, 1),
    state_size=4,
    decoder_width=8,
    query_width=8,
    mask_width=4,
)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FED_DSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def towered(coordinator):
    """The coordinator's text space as sites see it that lack its encoder, as they would lack a CLIP tower."""
    space = replace(coordinator.space, encoder="a tower", phrase_encoder=None)
    coordinator.desk.banks.put(space)
    coordinator.desk.banks._config = TextConfig(encoder="offline")
    return space


@pytest.fixture
def site(coordinator, north, tmp_path, capsys):
    """Runs a command of the site north; returns its exit code, and what it said."""
    files = ("--ca", north.ca, "--certificate", north.certificate, "--key", north.key)
    connection = ("--coordinator", coordinator.address, *files, "--state", tmp_path / "site", "--timeout-s", 5)
    connection = (*connection, "--audit", tmp_path / "site" / "audit.jsonl")

    def run(command, *words, connection=connection):
        parser = argparse.ArgumentParser()
        commands = parser.add_subparsers()
        for group in (consortium_commands, predict_command):
            group.add_commands(commands)
        options = parser.parse_args([command, *map(str, (*words, *connection))])
        code = options.run(options)
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


@pytest.fixture
def records(tmp_path):
    """Event and facts of the site's audit log, found to be intact."""

    def read():
        log = AuditLog(tmp_path / "site" / "audit.jsonl")
        assert log.verify().is_intact
        return [(each["event"], each["facts"]) for each in map(json.loads, log.path.read_text().splitlines())]

    return read


def data_folder(path, classes):
    for part, value in (("imagesTr", 40), ("labelsTr", 1)):
        (path / part).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), value, np.int16), np.eye(4)), path / part / "doe.nii.gz")
    listed = [{"image": "imagesTr/doe.nii.gz", "label": "labelsTr/doe.nii.gz"}]
    content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, "classes": classes}
    (path / "dataset.json").write_text(json.dumps({**content, "training": listed}))
    return path


def test_bank_is_fetched_once_and_a_damaged_one_is_replaced(site, coordinator, tmp_path, records):
    assert site("bank") == (
        0,
        f"text space {coordinator.space.hash[:12]}: 2 classes, made by {coordinator.space.encoder}\n",
    )
    assert site("bank")[0] == 0
    (tmp_path / "site" / BANK).write_bytes(b"damaged")
    assert site("bank")[0] == 0
    assert records() == [("text space", {"site": "north", "bank": coordinator.space.hash})] * 2


def test_enrolment_goes_under_the_certificates_name_and_both_logs_witness_it(site, coordinator, tmp_path, records):
    folder = data_folder(tmp_path / "whatever", {})
    code, said = site("enrol", folder, "--dry-run")
    assert (code, json.loads(said)["site"]) == (0, "north")
    assert not coordinator.desk.contracts.contracts()
    assert site("enrol", folder) == (0, "enrolling site 'north'\naccepted; enrolled now: north\n")
    assert list(coordinator.desk.contracts.contracts()) == ["north"]
    (left, facts), (enrolled, answer) = records()
    assert (left, facts["classes"], enrolled) == ("left", {"liver": 1}, "enrolled")
    (at_coordinator,) = coordinator.recorded("enrolled")
    assert at_coordinator["contract"] == facts["contract"]
    assert coordinator.audit.verify(Head.parse(answer["coordinator_log"])).is_intact
    assert AuditLog(tmp_path / "site" / "audit.jsonl").verify(Head.parse(at_coordinator["site_log"])).is_intact
    assert "doe" not in json.dumps(records())


def test_enrolment_that_is_refused_names_every_reason(site, coordinator, tmp_path, authority, records):
    site("enrol", data_folder(tmp_path / "a", {}))
    south = authority.issue("south")
    files = ("--ca", south.ca, "--certificate", south.certificate, "--key", south.key)
    folder = data_folder(tmp_path / "b", {"liver": {"kind": "lesion", "host": "nowhere"}})
    connection = ("--coordinator", coordinator.address, *files, "--state", tmp_path / "south")
    code, said = site("enrol", folder, connection=connection)
    assert code == 1
    assert re.search(r"refused: \(1\) 'liver' is lesion at south, organ at north.*\(2\) .*no site labels", said)
    (folder / "labelsTr" / "doe.nii.gz").unlink()
    code, said = site("enrol", folder)
    assert code == 1
    assert "dsm-site check" in said


def test_phrases_are_asked_for_once_and_recorded_before_they_leave(site, towered, coordinator, tmp_path, records):
    assert site("encode", "gallstone", "liver")[1] == (
        "gallstone: encoded by the coordinator\nliver: known here already\n"
    )
    coordinator.service.stop(0)
    assert site("encode", "Gallstone")[1] == "Gallstone: known here already\n"
    left = [facts for event, facts in records() if event == "left"]
    assert [facts["phrases"] for facts in left] == [["gallstone"]]
    code, said = site("encode", "polyp")
    assert code == 1
    assert "nothing listens on" in said


def test_phrase_that_cannot_be_recorded_does_not_leave(site, towered, coordinator, tmp_path):
    assert site("encode", "gallstone")[0] == 0
    (tmp_path / "site" / "audit.jsonl").write_bytes(b"")
    before = len(coordinator.recorded("refused"))
    code, said = site("encode", "polyp")
    assert code == 1
    assert "is damaged" in said
    assert len(coordinator.recorded("refused")) == before
    assert not list((tmp_path / "cache").glob("*polyp*"))


def test_prediction_without_a_text_tower_asks_once_and_then_works_offline(site, towered, coordinator, tmp_path, capsys):
    torch.manual_seed(0)
    config = Config(model=SMALL, data=DataConfig(spacing_mm=(6.0, 6.0, 6.0), patch=(32, 32, 32)))
    checkpoint = tmp_path / "run" / "best"
    save_checkpoint(checkpoint, build_model(config.model, towered), config, towered)
    values = np.full((36, 30, 40), -1000, dtype=np.int16)
    values[4:32, 4:26, 4:36] = 40
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4.0, 4.0, 1.0])), scan)
    words = [checkpoint, scan, "--query", "splenic abscess", "--query", "liver", "--device", "cpu"]
    alone = [str(word) for word in (*words, "-o", tmp_path / "alone.nii.gz")]

    assert predict.main(alone) == 2
    assert "dsm-site encode" in capsys.readouterr().err
    assert site("predict", *words, "-o", tmp_path / "asked.nii.gz")[0] == 0
    coordinator.service.stop(0)
    assert predict.main(alone) == 0
    assert site("predict", *words, "-o", tmp_path / "again.nii.gz", connection=())[0] == 0

    masks = [np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj) for name in ("asked", "alone", "again")]
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    code, said = site("predict", *words[:2], "--query", "polyp", "-o", tmp_path / "never.nii.gz")
    assert code == 1
    assert "nothing listens on" in said
    assert not (tmp_path / "never.nii.gz").exists()


def test_watch_tells_each_round_and_this_sites_own_reason(site, coordinator):
    run = coordinator.desk.runs / "main"
    run.mkdir()
    rounds = [
        {"round": 1, "sites": ["north", "south"], "refused": {}, "failed": {}, "loss": 0.51234},
        {"round": 2, "sites": [], "refused": {"north": "NaN"}, "failed": {"south": "away"}},
    ]
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds))
    state = {"phase": "stopped", "round": 2, "rounds": 9, "alive": 0, "waiting_for": ["south"]}
    (run / "progress.json").write_text(json.dumps(state))
    code, said = site("watch", "main")
    assert code == 0
    assert said.splitlines() == [
        "round 1: loss 0.5123, 2 sites (north, south)",
        "round 2: 0 sites (); north: NaN; south: no usable update",
        "round 2 of 9, stopped: waiting for south",
    ]


def test_missing_connection_is_named(site):
    code, said = site("bank", connection=())
    assert code == 1
    assert "--coordinator, --ca, --certificate, --key" in said
