"""What a person sees after a crash: doctor and status of a site, status of the coordinator, say what is not well."""

import json
import os
import sys

import pytest

from client.cli import main as dsm_site
from client.ledger import LEDGER_NAME, Ledger
from server.cli import main as dsm_server
from server.waiting import Waiting, mark_finished
from strategies.audit import AuditLog
from strategies.deployment.processes import Place, hold_lock

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes are found by their locks")


@pytest.fixture
def member(tmp_path, monkeypatch):
    """A folder with a consortium and the member north, whose data folder is `data`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    assert dsm_server(["init", "demo", "--host", "127.0.0.1", "--no-proxy"]) == 0
    assert dsm_server(["add-site", "north"]) == 0
    assert dsm_site(["join", "consortium/kits/north.kit.tar.gz", "--data", "data"]) == 0
    assert dsm_server(["accept", "north", "site/north.csr"]) == 0
    assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
    return tmp_path


@pytest.fixture
def doctor(member, capsys):
    """The findings of `dsm-site doctor`, by name."""

    def examined():
        capsys.readouterr()
        dsm_site(["doctor", "--timeout-s", "0.5", "--json"])
        return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}

    return examined


@pytest.fixture
def status(member, capsys):
    """What `status` of dsm-site or dsm-server prints."""

    def printed(program):
        capsys.readouterr()
        assert program(["status"]) == 0
        return capsys.readouterr().out

    return printed


@pytest.fixture
def runs(member):
    """Makes this process hold the lock of a program, as if the program ran: `runs(folder, name)`."""
    held = []
    yield lambda folder, name: held.append(hold_lock(Place(member / folder), name))
    for descriptor in held:
        os.close(descriptor)


def test_a_site_of_which_nothing_runs_is_told_to_start(doctor, status):
    found = doctor()["programs"]
    assert found["state"] == "warning"
    assert "supernode does not run" in found["found"]
    assert "dsm-site start" in found["remedy"]
    assert "warning: no program of this site runs: `dsm-site start" in status(dsm_site)


def test_programs_whose_supervisor_was_killed_are_named_on_both_sides(runs, doctor, status):
    runs("site", "supernode")
    assert "nobody starts them again" in doctor()["programs"]["remedy"]
    assert "warning: programs run, but nobody starts them again: `dsm-site stop`" in status(dsm_site)
    assert "nobody starts" not in status(dsm_server)
    runs("consortium", "superlink")
    assert "warning: programs run, but nobody starts them again: `dsm-server stop`" in status(dsm_server)


def test_a_program_that_is_missing_is_told_from_a_site_in_health(runs, doctor, status):
    for name in ("supervisor", "superexec"):
        runs("site", name)
    assert "look into logs/" in doctor()["programs"]["remedy"]
    runs("site", "supernode")
    assert doctor()["programs"]["state"] == "ok"
    assert "warning" not in status(dsm_site)


def test_a_line_that_a_crash_cut_off_stops_nothing_and_a_damaged_log_is_a_fault(member, doctor):
    log = AuditLog(member / "site" / "audit.jsonl")
    log.record("left", kind="train")
    with log.path.open("ab") as file:
        file.write(b'{"number": 2, "ti')
    assert doctor()["audit log"]["state"] == "ok"
    log.record("left", kind="train")
    log.path.write_bytes(log.path.read_bytes().replace(b"train", b"trout"))
    found = doctor()["audit log"]
    assert found["state"] == "fault"
    assert "is damaged" in found["found"]
    assert found["remedy"]


def test_a_damaged_ledger_is_a_fault_and_a_clock_set_back_a_warning(member, doctor):
    assert "privacy ledger" not in doctor()
    path = member / "data" / LEDGER_NAME
    ledger = Ledger(path, "data", clock=lambda: 2e9)
    ledger.create(8.0, 1e-4)
    assert doctor()["privacy ledger"]["state"] == "ok"
    Ledger(path, "data", clock=lambda: 1e9).set_ceiling(4.0)
    found = doctor()["privacy ledger"]
    assert found["state"] == "warning"
    assert "the clock was set back" in found["found"]
    path.write_bytes(path.read_bytes().replace(b"8.0", b"9.0"))
    found = doctor()["privacy ledger"]
    assert found["state"] == "fault"
    assert "nothing trained privately leaves" in found["remedy"]


def test_the_coordinator_sees_whom_a_run_waits_for_and_why_another_one_stopped(member, status):
    for run in ("first", "second", "third"):
        (member / "consortium" / "runs" / run).mkdir(parents=True)
    folder = member / "consortium" / "runs"
    done = Waiting(folder / "first")
    done.begin("training", 1, 1, ["north"], 60)
    mark_finished(folder / "first")
    Waiting(folder / "second").begin("training", 2, 3, ["north", "south"], 60)
    stopped = Waiting(folder / "third")
    stopped.begin("training", 1, 3, ["north"], 60)
    stopped.end("stopped", "round 1: 0 of 1 sites gave a usable update")
    said = status(dsm_server)
    assert "run third: federated: round 1 of 3, stopped, round 1: 0 of 1 sites" in said
    assert "run second: federated: round 2 of 3, training (0 s of 60 s); awaited: north, south" in said
    assert "run first" not in said
