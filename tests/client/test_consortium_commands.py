"""The site's commands that ask the coordinator, end to end: text space, enrolment, phrases, a prediction, progress."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from client import cli
from client.bank_cache import BANK
from dsm_core import predict
from dsm_core.checkpoint import save_checkpoint
from dsm_core.classes import ATLAS
from dsm_core.config import Config, DataConfig, ModelConfig, TextConfig
from dsm_core.model import build_model
from dsm_core.text_building import build_text_space
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
    coordinator.desk.banks.put(space, TextConfig(encoder="offline"))
    return space


@pytest.fixture
def join(coordinator):
    """Makes the folder of a site as `dsm-site join` leaves it."""

    def joined(folder, files, name="north"):
        folder.mkdir()
        for name_, source in {"ca.crt": files.ca, "site.crt": files.certificate, "site.key": files.key}.items():
            (folder / name_).write_bytes(source.read_bytes())
        (folder / "site.ssh").write_text("the same key for Flower")
        for key in ("site.key", "site.ssh"):
            (folder / key).chmod(0o600)
        facts = {"consortium": "trial", "name": name, "secret": "", "flower": "1.41.0"}
        addresses = {"fleet": coordinator.address, "service": coordinator.address}
        (folder / "membership.json").write_text(json.dumps({**facts, **addresses}))
        return folder

    return joined


@pytest.fixture
def site(join, north, tmp_path, capsys):
    """Runs a command of the site north; returns its exit code, and what it said."""
    own = join(tmp_path / "site", north)

    def run(command, *words, folder=own):
        code = cli.main([command, *map(str, words), "--folder", str(folder), "--timeout-s", "5"])
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
    code, said = site("enrol", "--data", folder, "--dry-run")
    assert (code, json.loads(said)["site"]) == (0, "north")
    assert not coordinator.desk.contracts.contracts()
    assert site("enrol", "--data", folder) == (0, "enrolling site 'north'\naccepted; enrolled now: north\n")
    assert list(coordinator.desk.contracts.contracts()) == ["north"]
    (left, facts), (enrolled, answer) = records()
    assert (left, facts["classes"], enrolled) == ("left", {"liver": 1}, "enrolled")
    (at_coordinator,) = coordinator.recorded("enrolled")
    assert at_coordinator["contract"] == facts["contract"]
    assert coordinator.audit.verify(Head.parse(answer["coordinator_log"])).is_intact
    assert AuditLog(tmp_path / "site" / "audit.jsonl").verify(Head.parse(at_coordinator["site_log"])).is_intact
    assert "doe" not in json.dumps(records())


def test_enrolment_that_is_refused_names_every_reason(site, join, tmp_path, authority):
    site("enrol", "--data", data_folder(tmp_path / "a", {}))
    south = join(tmp_path / "south", authority.issue("south"), "south")
    folder = data_folder(tmp_path / "b", {"liver": {"kind": "lesion", "host": "nowhere"}})
    code, said = site("enrol", "--data", folder, folder=south)
    assert code == 1
    assert re.search(r"refused: \(1\) 'liver' is lesion at south, organ at north.*\(2\) .*no site labels", said)
    (folder / "labelsTr" / "doe.nii.gz").unlink()
    code, said = site("enrol", "--data", folder)
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


def test_prediction_where_nobody_has_a_text_tower_composes_a_lesion_of_a_known_organ(site, coordinator, tmp_path):
    """As with a bank of saved CLIP embeddings, which holds no other phrase."""
    classes = [ATLAS[name] for name in ("liver", "spleen", "liver tumor")]
    space = replace(build_text_space(classes, TextConfig()), encoder="a tower", phrase_encoder=None)
    coordinator.desk.banks.put(space)
    config = Config(model=SMALL, data=DataConfig(spacing_mm=(6.0, 6.0, 6.0), patch=(32, 32, 32)))
    save_checkpoint(tmp_path / "best", build_model(config.model, space), config, space)
    values = np.full((36, 30, 40), -1000, dtype=np.int16)
    values[4:32, 4:26, 4:36] = 40
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    words = [tmp_path / "best", tmp_path / "scan.nii.gz", "-o", tmp_path / "out.nii.gz", "--dry-run", "--device", "cpu"]
    code, said = site("predict", *words, "--query", "splenic abscess")
    assert code == 0, said
    assert "the coordinator refused (NOT_FOUND)" in said
    assert "vector composed from the vectors of the text space, since no text tower is at hand" in said
    code, said = site("predict", *words, "--query", "omentum")
    assert code == 2
    assert "words name no lesion of an organ" in said


def test_prediction_without_a_text_tower_asks_once_and_then_works_offline(site, towered, coordinator, tmp_path, capsys):
    torch.manual_seed(0)
    config = Config(model=SMALL, data=DataConfig(spacing_mm=(6.0, 6.0, 6.0), patch=(32, 32, 32)))
    checkpoint = tmp_path / "run" / "best"
    save_checkpoint(checkpoint, build_model(config.model, towered), config, towered)
    values = np.full((36, 30, 40), -1000, dtype=np.int16)
    values[4:32, 4:26, 4:36] = 40
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4.0, 4.0, 1.0])), scan)
    words = [checkpoint, scan, "--query", "splenic abscess", "--query", "liver"]
    alone = [str(word) for word in (*words, "--device", "cpu", "-o", tmp_path / "alone.nii.gz")]

    assert predict.main(alone) == 2
    assert "dsm-site encode" in capsys.readouterr().err
    assert site("predict", *words, "-o", tmp_path / "asked.nii.gz")[0] == 0
    coordinator.service.stop(0)
    assert predict.main(alone) == 0
    assert site("predict", *words, "-o", tmp_path / "again.nii.gz", folder=tmp_path / "absent")[0] == 0

    masks = [np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj) for name in ("asked", "alone", "again")]
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    (tmp_path / "other").mkdir()
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "dataset.json").write_text("{}")
    (tmp_path / "other" / "site.yaml").write_text(f"data: {tmp_path / 'data'}\ndevice: cuda:97\n")
    code, said = site("predict", *words, "-o", tmp_path / "never.nii.gz", folder=tmp_path / "other")
    assert code == 2
    assert "--device cuda:97 is not available here" in said
    code, said = site("predict", *words[:2], "--query", "polyp", "-o", tmp_path / "never.nii.gz")
    assert code == 1
    assert "nothing listens on" in said
    assert not (tmp_path / "never.nii.gz").exists()


def test_watch_tells_each_round_and_this_sites_own_reason(site, coordinator):
    run = coordinator.desk.runs / "main"
    run.mkdir()
    rounds = [
        {
            "round": 1, "sites": ["north", "south"], "refused": {}, "failed": {}, "loss": 0.51234, "stage": "organs",
        },
        {"round": 2, "sites": [], "refused": {"north": "NaN"}, "failed": {"south": "away"}},
    ]  # fmt: skip
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds))
    state = {"phase": "stopped", "round": 2, "rounds": 9, "alive": 0, "waiting_for": ["south"], "stage": "prior"}
    assert len(site("watch", "main", "--no-follow")[1].splitlines()) == 2
    (run / "progress.json").write_text(json.dumps(state))
    code, said = site("watch", "main")
    assert code == 0
    assert said.splitlines() == [
        "round 1 (organs): loss 0.5123, 2 sites (north, south)",
        "round 2: 0 sites (); north: NaN; south: no usable update",
        "round 2 of 9 (prior), stopped: waiting for south",
    ]


def test_a_site_that_has_not_joined_or_was_not_accepted_is_told(site, tmp_path):
    assert "dsm-site join KIT" in site("bank", folder=tmp_path / "absent")[1]
    (tmp_path / "site" / "site.crt").unlink()
    code, said = site("bank")
    assert code == 1
    assert "has no certificate yet" in said


def test_doctor_reads_the_sites_folder(site, tmp_path):
    data = data_folder(tmp_path / "data", {})
    (tmp_path / "site" / "site.yaml").write_text(f"data: {data}\n")
    code, said = site("doctor")
    assert code == 0, said
    assert "membership   site 'north' of trial" in said
    assert "coordinator  knows this site as 'north'" in said
    (tmp_path / "site" / "site.yaml").write_text(f"data: {data}\ncolour: blue\n")
    code, said = site("doctor", "--json")
    assert code == 1
    faults = [each for each in json.loads(said)["findings"] if each["state"] == "fault"]
    assert [(each["name"], "colour" in each["found"]) for each in faults] == [("site.yaml", True)]
    (tmp_path / "site" / "site.key").chmod(0o644)
    assert "chmod 600" in site("doctor")[1]
    code, said = site("doctor", "--data", data, folder=tmp_path / "absent")
    assert code == 0
    assert "join with `dsm-site join KIT`" in said
