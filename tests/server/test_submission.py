"""A run begins when its sites are there, and every wait ends with the names of those that are not."""

import json
import time
from dataclasses import dataclass, field

import pytest

from dsm_core.config import Config
from server import submission
from server.consortium import ACCEPTED, Consortium, SiteRecord
from server.control import ControlFault, Node
from server.founding import create_consortium
from server.orders import Order
from server.resume import remember_config
from server.run_config import ORDER, OVERRIDES
from server.submission import RunFault, run_to_the_end
from server.waiting import Waiting, read_progress

HISTORY = '{"round": 1, "loss": 0.5, "seconds": 2.0, "sites": ["north"], "refused": {}, "failed": {"south": "late"}}\n'


@pytest.fixture
def consortium(tmp_path):
    made = create_consortium(Consortium(tmp_path / "c", "demo", ("localhost",), 9443, 9444, 9092, False))
    for name in ("north", "south"):
        made.save_site(SiteRecord(name, ACCEPTED, "ab" * 32))
        made.site_file(name, ".pub").write_text(name)
    return made


@dataclass
class FakeControl:
    """A SuperLink with some sites online; its runs go through `statuses`, a fault is raised."""

    online: tuple = ("north", "south")
    statuses: list = field(default_factory=lambda: [("running", ""), ("finished:completed", "")])
    submitted: list = field(default_factory=list)
    stopped: list = field(default_factory=list)
    left: list = field(default_factory=list)

    def nodes(self):
        names = enumerate(("north", "south"), 1)
        return [Node(i, n, "online" if n in self.online else "offline", n.encode()) for i, n in names]

    def start_run(self, fab, run_config):
        self.submitted.append(run_config)
        return 7

    def run_status(self, run):
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        return status

    def unfinished_runs(self):
        return self.left

    def stop_run(self, run):
        self.stopped.append(run)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


@pytest.fixture
def run(consortium, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "POLL_S", 0.01)

    def start(control, wait_s=0.05, tend=lambda: None):
        monkeypatch.setattr(submission, "open_control", lambda _: control)
        said = []
        order = Order(("rounds=1",), tmp_path / "run", 2, wait_s)
        return run_to_the_end(consortium, order, None, tend, said.append), said

    return start


def test_a_run_is_submitted_and_its_words_stay_here(run, consortium, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").write_text(HISTORY)
    control = FakeControl()
    folder, said = run(control)
    assert folder == tmp_path / "run"
    assert said == ["run 7 of 2 sites; results go to " + f"{folder}"]  # that round was done before this run
    (sent,) = control.submitted
    order = json.loads(consortium.folder.joinpath("flower", "order.json").read_text())
    assert (sent[OVERRIDES], order["order"], order["overrides"]) == ("", sent[ORDER], ["rounds=1"])
    assert control.stopped == []


def test_rounds_are_told_once_also_when_a_resumed_run_takes_one_back(run, tmp_path):
    history = tmp_path / "run" / "history.jsonl"
    history.parent.mkdir()
    history.write_text(HISTORY + HISTORY.replace(": 1,", ": 2,"))
    again = HISTORY.replace(": 1,", ": 2,").replace("0.5", "0.25")
    _, said = run(FakeControl(), tend=lambda: history.write_text(HISTORY + again))
    assert [words for words in said if words.startswith("round")] == ["round 2: loss 0.25, 2.0 s, north; south: late"]


def test_a_long_round_tells_for_whom_it_waits(run, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "LINE_EVERY_S", 0.0)
    (tmp_path / "run").mkdir()
    progress = {"phase": "training", "round": 3, "waiting_for": ["north"], "since": time.time() - 41, "deadline_s": 600}
    (tmp_path / "run" / "progress.json").write_text(json.dumps(progress))
    _, said = run(FakeControl())
    assert "round 3: waiting for north (41 s of 600 s)" in said
    (tmp_path / "run" / "progress.json").write_text(json.dumps(progress | {"phase": "finished", "waiting_for": []}))
    _, said = run(FakeControl())
    assert not any("waiting" in words for words in said)


def test_a_run_that_its_killed_command_left_behind_is_stopped_before_another_begins(run):
    control = FakeControl(left=[5])
    _, said = run(control)
    assert control.stopped == [5]
    assert "run 5 was left to itself and is stopped" in said


def test_sites_that_do_not_connect_are_named_and_no_run_begins(run):
    control = FakeControl(online=("north",))
    with pytest.raises(RunFault, match=r"1 of 2 sites are connected; waiting for south has taken 0.05 s"):
        run(control)
    assert control.submitted == []


def test_a_failed_run_is_an_error_with_flower_s_reason_and_the_way_on(run, tmp_path):
    with pytest.raises(RunFault, match=r"run 7 is finished:failed: below quorum$"):
        run(FakeControl(statuses=[("finished:failed", "below quorum")]))
    (tmp_path / "run").mkdir()
    remember_config(tmp_path / "run", Config())
    with pytest.raises(RunFault, match="below quorum; `dsm-server start --resume name=run` goes on with it"):
        run(FakeControl(statuses=[("finished:failed", "below quorum")]))


def test_a_run_whose_process_vanished_is_marked_and_how_it_goes_on_is_told(run, tmp_path):
    (tmp_path / "run").mkdir()
    remember_config(tmp_path / "run", Config())
    waiting = Waiting(tmp_path / "run")
    waiting.begin("training", 2, 3, ["north"], 60)
    vanished = FakeControl(statuses=[("finished:failed", "No heartbeat received from the task")])
    with pytest.raises(RunFault, match=r"its process ended without a word: .* `dsm-server start --resume name=run`"):
        run(vanished)
    assert read_progress(tmp_path / "run")["phase"] == "stopped"
    assert "killed, or out of memory" in read_progress(tmp_path / "run")["reason"]


def test_why_a_run_stopped_is_told_in_its_own_words(run, tmp_path):
    (tmp_path / "run").mkdir()
    Waiting(tmp_path / "run").end("stopped", "round 2: 0 of 2 sites")
    with pytest.raises(RunFault, match=r"run 7 is finished:failed: round 2: 0 of 2 sites$"):
        run(FakeControl(statuses=[("finished:failed", "Unhandled exception")]))


def test_a_superlink_that_is_started_anew_is_waited_for(run):
    gone = ControlFault("does not answer")
    run(FakeControl(statuses=[("running", ""), gone, gone, ("finished:completed", "")]))


def test_a_superlink_that_stays_away_is_named(run, monkeypatch):
    monkeypatch.setattr(submission, "SILENCE_S", 0.05)
    with pytest.raises(RunFault, match="run 7 is lost after 0 rounds: does not answer"):
        run(FakeControl(statuses=[ControlFault("does not answer")]))


def test_a_run_cut_short_is_stopped(run):
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt

    control = FakeControl(statuses=[("running", "")])
    with pytest.raises(KeyboardInterrupt):
        run(control, tend=interrupt)
    assert control.stopped == [7]
