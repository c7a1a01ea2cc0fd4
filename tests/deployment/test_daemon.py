"""A command in the background says when it is ready, or why it is not; asked to end, it ends in order."""

import os
import signal
import sys

import pytest

from strategies.deployment.daemon import SUPERVISOR, Ended, endable, go_on_in_background, stop_everything
from strategies.deployment.errors import DeploymentError
from strategies.deployment.processes import Place, processes_with, running_pid

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is left over is found in /proc")

TAKES_PART = """
import sys, time
from pathlib import Path
from strategies.deployment.daemon import SUPERVISOR, Ended, endable, running_as, tell_ready
from strategies.deployment.processes import Place, Program
from strategies.deployment.supervision import Service, Supervisor
place = Place(Path(sys.argv[1]))
try:
    with endable(), running_as(place, SUPERVISOR):
        sleeps = Program("one", (sys.executable, "-c", "import time; time.sleep(60)"))
        supervisor = Supervisor(place, [Service(sleeps)], print)
        try:
            supervisor.start()
            tell_ready()
            time.sleep(60)
        finally:
            supervisor.stop()
except Ended as ended:
    print("ended by", ended)
"""
FAILS = "import sys; print('no such kit'); sys.exit(1)"


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "takes_part.py").write_text(TAKES_PART)
    (tmp_path / "fails.py").write_text(FAILS)
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    made = Place(tmp_path)
    yield made
    stop_everything(made, [SUPERVISOR], ["one"])


def test_a_command_goes_on_in_the_background_and_ends_with_its_programs(place):
    pid = go_on_in_background(place, "takes_part", [f"{place.folder}"], 120)
    assert running_pid(place, SUPERVISOR) == pid
    assert running_pid(place, "one")
    with pytest.raises(DeploymentError, match=f"runs already, process {pid}"):
        go_on_in_background(place, "takes_part", [f"{place.folder}"], 120)
    assert stop_everything(place, [SUPERVISOR], ["one"]) == [SUPERVISOR, "one"]
    assert "ended by SIGTERM" in place.log(SUPERVISOR).read_text()
    assert processes_with(*place.mark("one")) == []


def test_programs_of_a_killed_supervisor_are_ended_too(place):
    os.kill(go_on_in_background(place, "takes_part", [f"{place.folder}"], 120), signal.SIGKILL)
    assert stop_everything(place, [SUPERVISOR], ["one"])[-1] == "one"
    assert running_pid(place, "one") is None


def test_why_a_command_did_not_become_ready_is_told(place):
    with pytest.raises(DeploymentError, match=r"^no such kit$"):
        go_on_in_background(place, "fails", [], 120)
    with pytest.raises(DeploymentError, match=r"was not ready within 0.2 s"):
        go_on_in_background(place, "sleeps", [], 0.2)


def test_a_request_to_end_is_an_exception_once():
    def asked_twice():
        with endable():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Ended, match="SIGTERM"):
        asked_twice()
