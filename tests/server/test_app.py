"""The whole federation in process with an imitated training pass: enrolment, rounds, checkpoint, and honest failure."""

import json
import shlex
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from flwr.common.serde import recorddict_to_proto, user_config_to_proto

import client.app as site_app
from client.text_client import ConsortiumClient
from dsm_core.checkpoint import load_checkpoint
from dsm_core.config import ConfigError
from dsm_core.stages import MOVING
from server.app import app
from server.banks import Banks
from server.consortium import NODE_NAMES
from server.enrolment import ContractConflict
from server.rounds import RoundError
from server.run import run_federation
from server.run_config import HOME, OVERRIDES, leave_order
from simulations.grid import run_in_process
from strategies import messages
from strategies.audit import AuditLog


def make_site(root, name, classes, declared=None):
    """A site folder with one case that annotates all its classes."""
    folder = root / name
    for part, value in (("imagesTr", 40), ("labelsTr", 1)):
        (folder / part).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), value, np.int16), np.eye(4)), folder / part / "case_1.nii.gz")
    content = {
        "labels": {"0": "background"} | {f"{value}": name for value, name in enumerate(classes, start=1)},
        "modality": {"0": "CT"},
        "training": [{"image": "imagesTr/case_1.nii.gz", "label": "labelsTr/case_1.nii.gz"}],
        "classes": declared or {},
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def sites(tmp_path):
    return [make_site(tmp_path, "north", ["liver"]), make_site(tmp_path, "south", ["liver", "spleen"])]


@pytest.fixture
def training(monkeypatch):
    """Every tensor moves by `change[site]` a round."""
    change = {"north": 0.001, "south": 0.003}

    def train_round(session, arrays, order, ledger_file):
        moving = MOVING[order.stage].part(arrays)
        moved = {name: array + np.float32(change[session.site]) for name, array in moving.items()}
        return SimpleNamespace(arrays=moved, metrics={"loss": 1.0 / order.round, "num-cases": 1})

    def site_session(folder, config, text, device):
        nothing = {
            "begin": lambda stage: None,
            "optimizer_arrays": dict,
            "load_optimizer_arrays": lambda moments, steps=0: None,
        }
        return SimpleNamespace(site=folder.name, **nothing)

    monkeypatch.setattr(site_app, "site_session", site_session)
    monkeypatch.setattr(site_app, "train_round", train_round)
    return change


def words_of(sites, out, *further):
    return [
        "rounds=2",
        "prior.rounds=0",
        "tumors.rounds=0",
        f"sites={len(sites)}",
        "text.encoder=offline",
        "name=trial",
        f"out={out}",
        *further,
    ]


def run(sites, out, *further):
    return run_in_process(app, site_app.app, sites, {OVERRIDES: shlex.join(words_of(sites, out, *further))})


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A consortium's folder, known to the ServerApp by its environment; every node is registered by its folder."""
    (tmp_path / "consortium" / "flower").mkdir(parents=True)
    monkeypatch.setenv(HOME, f"{tmp_path / 'consortium'}")
    return tmp_path / "consortium"


def run_deployed(home, sites, out, *further, client_app=site_app.app):
    (home / NODE_NAMES).write_text(json.dumps({f"{node}": site.name for node, site in enumerate(sites, 2)}))
    return run_in_process(app, client_app, sites, leave_order(home, words_of(sites, out, *further)))


def test_run_leaves_history_and_checkpoint(sites, training, tmp_path):
    out = tmp_path / "with space"
    run(sites, out)
    history = [json.loads(line) for line in (out / "trial" / "history.jsonl").read_text().splitlines()]
    assert [record["round"] for record in history] == [1, 2]
    assert [record["loss"] for record in history] == [1.0, 0.5]
    kept = load_checkpoint(out / "trial" / "checkpoints" / "last")
    assert kept.text.names == ("liver", "spleen")
    rows = kept.model.state_dict()
    assert rows["class_rows.evidence"].tolist() == [2, 1]
    np.testing.assert_allclose(rows["class_rows.residual.weight"][0], 0.004, rtol=1e-5)
    np.testing.assert_allclose(rows["class_rows.residual.weight"][1], 0.006, rtol=1e-5)


def test_every_site_failing_is_an_error_and_no_checkpoint(sites, training, tmp_path):
    training.update(north=np.nan, south=np.inf)
    with pytest.raises(RoundError, match=r"0 of 2 sites .*north: refused.*south: refused"):
        run(sites, tmp_path)
    assert not (tmp_path / "trial" / "checkpoints").exists()


def audit_of(folder):
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_nothing_that_a_site_receives_names_a_place_of_the_coordinator(home, sites, training, tmp_path):
    received = []

    def listening(message, context):
        config = b"".join(value.SerializeToString() for value in user_config_to_proto(context.run_config).values())
        received.append(
            (message.metadata.message_type, config + recorddict_to_proto(message.content).SerializeToString())
        )
        return site_app.app(message, context)

    secret = tmp_path / "secret place"
    run_deployed(home, sites, secret, client_app=listening)
    assert (secret / "trial" / "checkpoints" / "last").is_dir()
    assert {kind for kind, _ in received} == {messages.ENROL, messages.TEXT, messages.TRAIN}
    for kind, content in received:
        for place in (f"{tmp_path}", "secret place", "consortium", "trial"):
            assert place.encode() not in content, kind


def test_run_of_a_consortium_leaves_an_audit_log_and_its_text_space(home, sites, training, tmp_path):
    training["south"] = np.nan
    run_deployed(home, sites, tmp_path, "server.quorum=0.5")
    assert AuditLog(home / "audit.jsonl").verify().is_intact
    began, *rounds = audit_of(home)
    assert began["facts"]["contracts"] == {"north": {"liver": 1}, "south": {"liver": 1, "spleen": 1}}
    kept = load_checkpoint(tmp_path / "trial" / "checkpoints" / "last")
    assert began["facts"]["bank"] == kept.text.hash == Banks(home / "banks").current_hash()
    assert [record["facts"]["round"] for record in rounds] == [1, 2]
    assert [record["facts"]["sites"] for record in rounds] == [["north"], ["north"]]
    assert "NaN" in rounds[0]["facts"]["refused"]["south"]
    contents = [record["facts"]["content"] for record in (began, *rounds)]
    assert len(set(contents)) == 3
    assert all(record["facts"]["bytes"] > 1000 for record in rounds)


def test_run_that_cannot_begin_is_in_the_audit_log(home, sites, training, tmp_path):
    sites.append(make_site(tmp_path, "east", ["liver"], {"liver": {"kind": "lesion"}}))
    with pytest.raises(ContractConflict):
        run_deployed(home, sites, tmp_path)
    (record,) = audit_of(home)
    assert record["event"] == "failed"
    assert "lesion at east" in record["facts"]["reason"]


def weights(folder):
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def failing_in(round, monkeypatch):
    """Let both sites fail the first time that this round is asked; returns the rounds asked so far."""
    good, calls = site_app.train_round, []

    def train_round(session, arrays, order, ledger_file):
        calls.append(order.round)
        if order.round == round and calls.count(round) <= 2:
            raise OSError(28, "No space left on device")
        return good(session, arrays, order, ledger_file)

    monkeypatch.setattr(site_app, "train_round", train_round)
    return calls


def test_run_that_stopped_below_quorum_goes_on_and_ends_as_if_it_had_not(sites, training, tmp_path, monkeypatch):
    run(sites, tmp_path / "whole", "rounds=4")
    whole = tmp_path / "whole" / "trial"
    assert not (whole / "state").exists()
    calls = failing_in(3, monkeypatch)
    with pytest.raises(RoundError, match=r"round 3: 0 of 2 sites .*north: OSError .*at the site.*south: OSError"):
        run(sites, tmp_path / "broken", "rounds=4")
    broken = tmp_path / "broken" / "trial"
    assert json.loads((broken / "progress.json").read_text())["phase"] == "stopped"
    with (broken / "history.jsonl").open("a") as history:
        history.write('{"method": "federated", "round": 3, "loss": 9.0}\n{"method": "fed')
    run_in_process(app, site_app.app, sites, {"overrides": f"'resume={broken}'"})
    assert calls == [1, 1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert weights(broken) == weights(whole)
    history = [json.loads(line) for line in (broken / "history.jsonl").read_text().splitlines()]
    assert [record["round"] for record in history] == [1, 2, 3, 4]
    assert [record["loss"] for record in history][2] != 9.0
    assert json.loads((broken / "progress.json").read_text())["phase"] == "finished"
    with pytest.raises(ConfigError, match="the run is finished"):
        run_in_process(app, site_app.app, sites, {"overrides": f"'resume={broken}'"})


def test_run_goes_on_without_a_site_whose_data_have_changed(sites, training, tmp_path, monkeypatch):
    failing_in(2, monkeypatch)
    with pytest.raises(RoundError):
        run(sites, tmp_path)
    content = json.loads((sites[0] / "dataset.json").read_text())
    content["labels"]["2"] = "pancreas"
    (sites[0] / "dataset.json").write_text(json.dumps(content))
    run_in_process(app, site_app.app, sites, {"overrides": f"'resume={tmp_path / 'trial'}'"})
    second = json.loads((tmp_path / "trial" / "history.jsonl").read_text().splitlines()[1])
    assert second["sites"] == ["south"]
    assert "a contract is fixed for the run" in second["turned_away"]["north"]


def test_conflict_is_reported_before_round_1(sites, training, tmp_path):
    sites.append(make_site(tmp_path, "east", ["liver"], {"liver": {"kind": "lesion"}}))
    with pytest.raises(ContractConflict, match=r"'liver' is lesion at east, organ at north and south"):
        run(sites, tmp_path)
    assert not (tmp_path / "trial" / "history.jsonl").exists()


def test_relative_or_taken_result_folder_is_refused(sites, training, tmp_path):
    with pytest.raises(ConfigError, match="out=runs is relative"):
        run(sites, "runs")
    (tmp_path / "trial").mkdir()
    with pytest.raises(ConfigError, match="holds another run"):
        run(sites, tmp_path)


def test_mistyped_key_is_an_error(sites, training, tmp_path):
    with pytest.raises(ConfigError, match="roundz"):
        run(sites, tmp_path, "roundz=3")


def test_class_that_a_newcomer_brings_is_served_before_its_first_round_and_fetched_by_hash(
    sites, training, tmp_path, monkeypatch, coordinator, north
):
    """The service reads the consortium's folder, as the one does that `dsm-server start` runs in another process."""
    seen, good = {}, site_app.train_round
    words = [
        "rounds=3",
        "prior.rounds=0",
        "tumors.rounds=0",
        "sites=2",
        "text.encoder=offline",
        "name=trial",
        f"out={tmp_path}",
    ]
    home = coordinator.desk.banks.folder.parent
    sites.append(make_site(tmp_path, "east", ["pancreas"]))

    def train_round(session, arrays, order, ledger_file):
        with ConsortiumClient(coordinator.address, north) as client:
            held = seen.get(order.round - 1)
            seen[order.round] = client.get_bank(held)
            assert client.about().bank_hash == seen[order.round].hash
            vectors = client.encode(["gallstone"], seen[order.round].hash, seen[order.round].width)
            assert torch.equal(vectors, seen[order.round].encode(["gallstone"]))
        return good(session, arrays, order, ledger_file)

    def serve(grid, context):
        nodes = grid.get_node_ids()
        grid.get_node_ids = lambda: nodes if 1 in seen else nodes[:2]
        run_federation(grid, words, "trial", home)

    monkeypatch.setattr(site_app, "train_round", train_round)
    training["east"] = 0.002
    run_in_process(serve, site_app.app, sites, threads=1)
    assert [seen[round].names for round in (1, 2, 3)] == [("liver", "spleen"), *[("liver", "pancreas", "spleen")] * 2]
    assert seen[3] is not None
    assert seen[3].hash == load_checkpoint(tmp_path / "trial" / "checkpoints" / "last").text.hash
    assert torch.equal(seen[3].encode(["liver", "spleen"]), seen[1].vectors)
