"""A program is known to run exactly as long as it does, and nothing that it started outlives `stop`."""

import os
import signal
import socket
import sys
import time

import pytest

from strategies.deployment.errors import DeploymentError
from strategies.deployment.flower import free_port, is_port_taken
from strategies.deployment.processes import Place, Program, hold_lock, launch, processes_with, running_pid, stop

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is left over is found in /proc")

SLEEPS = "import time; time.sleep(60)"
# Starts a child in a session of its own, and tells its number.
PARENT = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {SLEEPS!r}], start_new_session=True).pid, flush=True)
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    stop(made, ["one", "two"], timeout_s=2.0)


def program(source, name="one", **options):
    return Program(name, (sys.executable, "-c", source), **options)


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_program_is_known_while_it_runs_and_not_after(place):
    process = launch(place, program(SLEEPS))
    assert running_pid(place, "one") == process.pid
    assert stop(place, ["one"]) == ["one"]
    assert running_pid(place, "one") is None
    assert stop(place, ["one"]) == []


def test_a_killed_program_is_not_taken_for_a_running_one(place):
    process = launch(place, program(SLEEPS))
    process.kill()
    process.wait()
    assert place.lock("one").read_text() == f"{process.pid}\n"
    assert running_pid(place, "one") is None


def test_a_program_runs_once(place):
    launch(place, program(SLEEPS))
    with pytest.raises(DeploymentError, match="one runs already, process"):
        launch(place, program(SLEEPS))


def test_children_are_gone_with_their_program(place):
    launch(place, program(PARENT))
    wait_for(lambda: place.log("one").read_text())
    child = int(place.log("one").read_text())
    assert child in processes_with(*place.mark("one"))
    stop(place, ["one"])
    assert processes_with(*place.mark("one")) == []


def test_children_of_a_killed_program_are_found_and_ended(place):
    process = launch(place, program(PARENT))
    wait_for(lambda: place.log("one").read_text())
    process.kill()
    process.wait()
    assert len(processes_with(*place.mark("one"))) == 1
    stop(place, ["one"])
    assert processes_with(*place.mark("one")) == []


def test_a_program_that_does_not_listen_is_killed_after_the_deadline(place):
    process = launch(place, program(DEAF))
    wait_for(lambda: "deaf" in place.log("one").read_text())
    stop(place, ["one"], timeout_s=0.3)
    assert process.wait() == -signal.SIGKILL


def test_another_program_is_left_alone(place):
    launch(place, program(SLEEPS, "one"))
    other = launch(place, program(SLEEPS, "two"))
    stop(place, ["one"])
    assert running_pid(place, "two") == other.pid


def test_a_port_that_is_taken_is_named_before_the_start(place):
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert is_port_taken(port)
        with pytest.raises(DeploymentError, match=rf"one wants port {port} of 127.0.0.1, and another program listens"):
            launch(place, program(SLEEPS, port=port))
    assert running_pid(place, "one") is None


def test_a_program_that_is_not_there_is_named(place):
    with pytest.raises(DeploymentError, match="nowhere/program cannot be started: No such file"):
        launch(place, Program("one", ("nowhere/program",)))
    assert running_pid(place, "one") is None


def test_this_process_can_hold_a_name_and_its_children_do_not(place):
    lock = hold_lock(place, "two")
    launch(place, program(SLEEPS))
    with pytest.raises(DeploymentError, match=f"two runs already, process {os.getpid()}"):
        hold_lock(place, "two")
    os.close(lock)
    assert running_pid(place, "two") is None


def test_files_of_processes_are_private(place):
    launch(place, program(SLEEPS))
    for name in ("processes", "logs"):
        assert (place.folder / name).stat().st_mode & 0o777 == 0o700
