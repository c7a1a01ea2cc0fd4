"""A coordinator and three sites as separate processes, three rounds, from `init` to checkpoint by our commands only."""

import json
import os
import signal
import sys
import time

import pytest
from flwr.proto.control_pb2 import ListRunsRequest

from dsm_core.config import PhantomConfig
from server.consortium import load_consortium
from server.control import open_control
from simulations.sites import generate_sites
from strategies.deployment.processes import Place, running_pid

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes left over are found in /proc"),
]

SITES = ("north", "south", "west")
KEYS = (
    "rounds=1",
    "prior.rounds=1",
    "tumors.rounds=1",
    "train.local_steps=1",
    "train.batch=1",
    "train.crops=1",
    "data.patch=[16,16,16]",
    "data.crop=[16,16,16]",
)
MOST_S = 240.0


@pytest.fixture(scope="module")
def training(typed_consortium, tmp_path_factory):
    """A consortium with three sites connected, made by our commands from nothing; knows when that began."""
    is_idle, started = os.getloadavg()[0] <= (os.cpu_count() or 1), time.monotonic()
    consortium = typed_consortium("training", "--no-proxy")
    sites = generate_sites(tmp_path_factory.mktemp("sites"), 3, PhantomConfig(cases=2, held_out=1), seed=0)
    for name, data in zip(SITES, sites.folders.values(), strict=True):
        consortium.join(name, data)
        consortium.accept(name)
    consortium.done(consortium.server("start", "--services", "--detach"))
    for name in SITES:
        consortium.done(consortium.site(name, "start", "--detach"))
    consortium.is_idle, consortium.started = is_idle, started
    return consortium


def status_of(consortium):
    return json.loads(consortium.done(consortium.server("status", "--json")))


def history_of(consortium, run):
    path = consortium.folder / "consortium" / "runs" / run / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def has_checkpoint(consortium, run):
    return (consortium.folder / "consortium" / "runs" / run / "checkpoints" / "last" / "model.json").exists()


def test_three_rounds_from_init_to_checkpoint_within_four_minutes(training):
    assert {site["site"]: site["connection"] for site in status_of(training)["sites"]} == dict.fromkeys(SITES, "online")
    said = training.done(training.server("start", *KEYS, "name=evidence"))
    seconds = time.monotonic() - training.started
    print(f"{said}{seconds:.0f} s from init to checkpoint")
    history = history_of(training, "evidence")
    assert [(record["round"], sorted(record["sites"])) for record in history] == [(n, list(SITES)) for n in (1, 2, 3)]
    assert has_checkpoint(training, "evidence")
    assert seconds < MOST_S or not training.is_idle, "the time is judged where nothing else was running"


def test_the_service_answers_and_both_logs_are_intact(training):
    report = json.loads(training.done(training.site("north", "doctor", "--json")))
    found = {finding["name"]: finding["state"] for finding in report["findings"]}
    asked = ("membership", "name", "port", "TLS", "coordinator", "clock", "releases", "fleet")
    assert {name: found[name] for name in asked} == dict.fromkeys(asked, "ok"), report
    assert "classes, made by hashed words" in training.done(training.site("north", "bank"))
    assert "accepted" in training.done(training.site("north", "enrol"))
    assert "round 3 (tumors): loss" in training.done(training.site("north", "watch", "evidence", "--no-follow"))
    for log, kinds in {"north": {"left"}, "consortium": {"accepted", "began", "round", "enrolled"}}.items():
        path = training.folder / log / "audit.jsonl"
        program = training.server if log == "consortium" else training.site_alone
        assert "intact" in training.done(program("audit", "verify", path))
        assert kinds <= {json.loads(line)["event"] for line in path.read_text().splitlines()}


def test_a_run_completes_although_the_superlink_and_a_supernode_are_killed(training):
    training.done(training.server("start", *KEYS, "name=killed", "--detach"))
    log = training.folder / "consortium" / "logs" / "run.log"
    wait_for(lambda: history_of(training, "killed"), log)
    before = status_of(training)["processes"]["superlink"]
    os.kill(before, signal.SIGKILL)
    site = json.loads(training.done(training.site("north", "status", "--json")))
    os.kill(site["processes"]["supernode"], signal.SIGKILL)
    wait_for(lambda: "completed:" in log.read_text(), log)
    assert len(history_of(training, "killed")) == 3
    assert has_checkpoint(training, "killed")
    after = status_of(training)
    assert after["processes"]["superlink"] not in (None, before)
    assert {site["site"]: site["connection"] for site in after["sites"]} == dict.fromkeys(SITES, "online")


def test_a_run_whose_command_was_killed_goes_on_where_it_was(training):
    training.done(training.server("start", *KEYS, "name=resumed", "--detach"))
    log = training.folder / "consortium" / "logs" / "run.log"
    wait_for(lambda: history_of(training, "resumed"), log)
    os.kill(running_pid(Place(training.folder / "consortium"), "run"), signal.SIGKILL)
    assert "go on with it: --resume" in training.refused(training.server("start", *KEYS, "name=resumed"))
    said = training.done(training.server("start", "--resume"))
    assert "was left to itself and is stopped" in said
    assert [record["round"] for record in history_of(training, "resumed")] == [1, 2, 3]
    assert "round 1:" not in said
    assert has_checkpoint(training, "resumed")
    assert "0 runs in" in training.refused(training.server("start", "--resume"))


def test_what_sites_are_told_of_a_run_names_no_place_of_the_coordinator(training):
    with open_control(load_consortium(training.folder / "consortium")) as control:
        runs = control.client.ListRuns(ListRunsRequest()).run_dict.values()
        told = [run.SerializeToString() for run in runs]
    assert told
    for content in told:
        assert f"{training.folder}".encode() not in content
        assert b"rounds" not in content


def wait_for(condition, log):
    deadline = time.monotonic() + 900
    while not condition():
        text = log.read_text()
        assert "dsm-server start:" not in text, text
        assert time.monotonic() < deadline, text
        time.sleep(1)
