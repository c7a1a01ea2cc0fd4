"""A coordinator and three sites as separate processes, three rounds, from `init` to checkpoint by our commands only."""

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress

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
KEYS = ("train.local_steps=1", "train.batch=1", "train.crops=1", "data.patch=[16,16,16]", "data.crop=[16,16,16]")
EACH_STAGE = ("rounds=1", "prior.rounds=1", "tumors.rounds=1")
ORGANS_ONLY = ("prior.rounds=0", "tumors.rounds=0")
MOST_S = 240.0
DEADLINE_S, GRACE_S = 60.0, 30.0  # of a round with a site that is slow; polling, averaging, a busy machine


@pytest.fixture(scope="module")
def consortium(typed_consortium, tmp_path_factory):
    """A consortium with three sites connected, made by our commands from nothing; knows when that began."""
    is_idle, started = os.getloadavg()[0] <= (os.cpu_count() or 1), time.monotonic()
    made = typed_consortium("training", "--no-proxy")
    sites = generate_sites(tmp_path_factory.mktemp("sites"), 3, PhantomConfig(cases=2, held_out=1), seed=0)
    for name, data in zip(SITES, sites.folders.values(), strict=True):
        made.join(name, data)
        made.accept(name)
    made.done(made.server("start", "--services", "--detach"))
    for name in SITES:
        made.done(made.site(name, "start", "--detach"))
    made.is_idle, made.started = is_idle, started
    return made


def status_of(consortium):
    return json.loads(consortium.done(consortium.server("status", "--json")))


def connections(consortium):
    return {site["site"]: site["connection"] for site in status_of(consortium)["sites"]}


def history_of(consortium, run):
    path = consortium.folder / "consortium" / "runs" / run / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def has_checkpoint(consortium, run):
    return (consortium.folder / "consortium" / "runs" / run / "checkpoints" / "last" / "model.json").exists()


def test_three_rounds_from_init_to_checkpoint_within_four_minutes(consortium):
    assert {site["site"]: site["connection"] for site in status_of(consortium)["sites"]} == dict.fromkeys(
        SITES, "online"
    )
    said = consortium.done(consortium.server("start", *KEYS, *EACH_STAGE, "name=evidence"))
    seconds = time.monotonic() - consortium.started
    print(f"{said}{seconds:.0f} s from init to checkpoint")
    history = history_of(consortium, "evidence")
    assert [(record["round"], sorted(record["sites"])) for record in history] == [(n, list(SITES)) for n in (1, 2, 3)]
    assert has_checkpoint(consortium, "evidence")
    assert seconds < MOST_S or not consortium.is_idle, "the time is judged where nothing else was running"


def test_the_service_answers_and_both_logs_are_intact(consortium):
    report = json.loads(consortium.done(consortium.site("north", "doctor", "--json")))
    found = {finding["name"]: finding["state"] for finding in report["findings"]}
    asked = ("membership", "name", "port", "TLS", "coordinator", "clock", "releases", "fleet")
    assert {name: found[name] for name in asked} == dict.fromkeys(asked, "ok"), report
    assert "classes, made by hashed words" in consortium.done(consortium.site("north", "bank"))
    assert "accepted" in consortium.done(consortium.site("north", "enrol"))
    assert "round 3 (tumors): loss" in consortium.done(consortium.site("north", "watch", "evidence", "--no-follow"))
    for log, kinds in {"north": {"left"}, "consortium": {"accepted", "began", "round", "enrolled"}}.items():
        path = consortium.folder / log / "audit.jsonl"
        program = consortium.server if log == "consortium" else consortium.site_alone
        assert "intact" in consortium.done(program("audit", "verify", path))
        assert kinds <= {json.loads(line)["event"] for line in path.read_text().splitlines()}


def test_a_site_slower_than_the_deadline_is_named_and_no_longer_waited_for(consortium, train):
    keys = (*KEYS, *ORGANS_ONLY, "train.local_steps=40")  # one step may be over before the site is slowed down
    run = train("slow", *keys, "rounds=2", "server.quorum=0.6", f"server.round_timeout_s={DEADLINE_S:g}")
    processes = run.until_training(2)
    run.until(lambda: crawl(processes) or run.history()[1:], "the deadline of round 2")
    send(signal.SIGCONT, processes)
    record = run.completes(2)[-1]
    assert record["sites"] == ["south", "west"]
    assert f"no answer within {DEADLINE_S:g} s, though it is connected: slower than" in record["failed"]["north"]
    assert DEADLINE_S <= record["seconds"] < DEADLINE_S + GRACE_S
    assert re.search(r"round 2: waiting for north\b", run.said)


def test_a_run_completes_although_the_superlink_and_a_supernode_are_killed(consortium):
    consortium.done(consortium.server("start", *KEYS, *EACH_STAGE, "name=killed", "--detach"))
    log = consortium.folder / "consortium" / "logs" / "run.log"
    wait_for(lambda: history_of(consortium, "killed"), log)
    before = status_of(consortium)["processes"]["superlink"]
    os.kill(before, signal.SIGKILL)
    site = json.loads(consortium.done(consortium.site("north", "status", "--json")))
    os.kill(site["processes"]["supernode"], signal.SIGKILL)
    wait_for(lambda: "completed:" in log.read_text(), log)
    assert len(history_of(consortium, "killed")) == 3
    assert has_checkpoint(consortium, "killed")
    assert status_of(consortium)["processes"]["superlink"] not in (None, before)
    assert connections(consortium) == dict.fromkeys(SITES, "online")


def test_a_run_whose_command_was_killed_goes_on_where_it_was(consortium):
    consortium.done(consortium.server("start", *KEYS, *EACH_STAGE, "name=resumed", "--detach"))
    log = consortium.folder / "consortium" / "logs" / "run.log"
    wait_for(lambda: history_of(consortium, "resumed"), log)
    os.kill(running_pid(Place(consortium.folder / "consortium"), "run"), signal.SIGKILL)
    assert "go on with it: --resume" in consortium.refused(
        consortium.server("start", *KEYS, *EACH_STAGE, "name=resumed")
    )
    said = consortium.done(consortium.server("start", "--resume"))
    assert "was left to itself and is stopped" in said
    assert [record["round"] for record in history_of(consortium, "resumed")] == [1, 2, 3]
    assert "round 1:" not in said
    assert has_checkpoint(consortium, "resumed")
    assert "0 runs in" in consortium.refused(consortium.server("start", "--resume"))


def test_what_sites_are_told_of_a_run_names_no_place_of_the_coordinator(consortium):
    with open_control(load_consortium(consortium.folder / "consortium")) as control:
        runs = control.client.ListRuns(ListRunsRequest()).run_dict.values()
        told = [run.SerializeToString() for run in runs]
    assert told
    for content in told:
        assert f"{consortium.folder}".encode() not in content
        assert b"rounds" not in content


def test_updates_that_are_no_numbers_end_a_run_with_the_names_of_their_sites(consortium, train):
    run = train("nan", *KEYS, *ORGANS_ONLY, "rounds=1", "train.local_steps=2", "train.lr=1e30")
    assert run.command.wait(run.patience_s) == 1
    assert "round 1: 0 of 3 sites gave a usable update" in run.said
    for site in SITES:  # one that does so alone is told apart in tests/server/test_rounds.py
        assert re.search(rf"{site}: refused, \S+ holds \d+ values that are NaN or Inf", run.said)
    assert not has_checkpoint(consortium, "nan")


def crawl(processes):
    """Let processes work for a moment in two seconds and leave them stopped: too slow, yet heard of often enough."""
    for sent, pause_s in ((signal.SIGCONT, 0.02), (signal.SIGSTOP, 2.0)):
        send(sent, processes)
        time.sleep(pause_s)


def send(sent, processes):
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, sent)


def wait_for(condition, log):
    deadline = time.monotonic() + 900
    while not condition():
        text = log.read_text()
        assert "dsm-server start:" not in text, text
        assert time.monotonic() < deadline, text
        time.sleep(1)
