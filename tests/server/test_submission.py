"""A run begins when its sites are there, and every wait ends with the names of those that are not."""

from dataclasses import dataclass, field

import pytest

from server import submission
from server.consortium import ACCEPTED, Consortium, SiteRecord, create_consortium
from server.control import ControlFault, Node
from server.submission import Order, RunFault, make_order, run_to_the_end
from strategies.deployment.errors import DeploymentError

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


def test_an_order_is_filled_in_for_the_accepted_sites(consortium):
    order = make_order(consortium, ["rounds=3", "name=first"], None, 60)
    assert order.sites == 2
    assert order.folder == consortium.folder / "runs" / "first"
    assert {"rounds=3", "sites=2", f"out={consortium.folder / 'runs'}"} <= set(order.overrides)


@pytest.mark.parametrize(
    ("keys", "sites", "reason"),
    [
        ([], 3, "3 sites are wanted and 2 have been accepted"),
        ([], 0, "0 sites are wanted"),
        (["round=3"], None, "round"),
        (["rounds=0"], None, "rounds wants at least 1"),
    ],
)
def test_an_order_that_cannot_be_is_refused_before_anything_starts(consortium, keys, sites, reason):
    with pytest.raises(DeploymentError, match=reason):
        make_order(consortium, keys, sites, 60)


def test_the_folder_of_another_run_is_not_overwritten(consortium):
    (consortium.folder / "runs" / "first").mkdir(parents=True)
    with pytest.raises(DeploymentError, match="holds another run; choose another name"):
        make_order(consortium, ["name=first"], None, 60)


def test_a_run_is_submitted_and_its_rounds_are_told(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").write_text(HISTORY)
    control = FakeControl()
    folder, said = run(control)
    assert folder == tmp_path / "run"
    assert "round 1: loss 0.5, 2.0 s, north; south: late" in said
    assert control.submitted[0]["overrides"] == "rounds=1"
    assert control.stopped == []


def test_sites_that_do_not_connect_are_named_and_no_run_begins(run):
    control = FakeControl(online=("north",))
    with pytest.raises(RunFault, match=r"1 of 2 sites are connected; waiting for south has taken 0.05 s"):
        run(control)
    assert control.submitted == []


def test_a_failed_run_is_an_error_with_flower_s_reason(run):
    with pytest.raises(RunFault, match="run 7 is finished:failed below quorum"):
        run(FakeControl(statuses=[("finished:failed", "below quorum")]))


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
