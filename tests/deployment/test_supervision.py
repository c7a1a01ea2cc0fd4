"""What ends is started again, what cannot run is named with its own words, and nothing stays behind."""

import sys
import time

import pytest

from strategies.deployment import supervision
from strategies.deployment.errors import DeploymentError
from strategies.deployment.processes import Place, Program, running_pid
from strategies.deployment.supervision import Service, Supervisor

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is left over is found in /proc")

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"


def service(source, name="one", **options):
    return Service(Program(name, (sys.executable, "-c", source)), **options)


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    made = []

    def build(*services):
        said = []
        made.append(Supervisor(Place(tmp_path), services, said.append))
        made[-1].said = said
        return made[-1]

    monkeypatch.setattr(supervision, "LONGEST_PAUSE_S", 0.01)
    yield build
    for supervisor in made:
        supervisor.stop()


def tend_until(supervisor, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        supervisor.tend()
        time.sleep(0.02)


def test_services_start_in_order_each_when_the_one_before_is_ready(supervise, tmp_path):
    seen = []
    supervisor = supervise(
        service(SLEEPS, "one", is_ready=lambda said: "up" in said),
        service(SLEEPS, "two", is_ready=lambda said: seen.append(running_pid(Place(tmp_path), "one")) or True),
    )
    supervisor.start()
    assert supervisor.said == ["one is up", "two is up"]
    assert seen[0]


def test_a_killed_service_is_started_again(supervise, tmp_path):
    supervisor = supervise(service(SLEEPS))
    supervisor.start()
    first = supervisor.services[0].process
    first.kill()
    tend_until(supervisor, lambda: running_pid(Place(tmp_path), "one") not in (None, first.pid))
    assert "one starts again in" in supervisor.said[-1]


def test_a_service_that_cannot_run_is_given_up_with_its_last_words(supervise):
    supervisor = supervise(service("import sys; sys.exit('no licence')"))
    supervisor.start()
    with pytest.raises(DeploymentError, match=r"(?s)one has ended 5 times in a row; the end of .*one.log:\nno licence"):
        tend_until(supervisor, lambda: False)


def test_a_start_that_fails_says_what_it_means_and_stops_the_others(supervise, tmp_path):
    supervisor = supervise(
        service(SLEEPS, "one"),
        service(
            "import sys; sys.exit('code 2004')",
            "two",
            is_ready=lambda _: False,
            explain=lambda said: "the coordinator does not know this site" if "2004" in said else "",
        ),
    )
    with pytest.raises(DeploymentError, match="two ended with code 1 at its start: the coordinator does not know"):
        supervisor.start()
    assert running_pid(Place(tmp_path), "one") is None


def test_silence_has_a_deadline(supervise, monkeypatch):
    monkeypatch.setattr(supervision, "START_TIMEOUT_S", 0.3)
    supervisor = supervise(service(SLEEPS, is_ready=lambda _: False))
    with pytest.raises(DeploymentError, match=r"one is not ready after 0\.3 s"):
        supervisor.start()


def test_a_service_that_runs_already_is_left_as_it_is(supervise, tmp_path):
    first = supervise(service(SLEEPS))
    first.start()
    second = supervise(service(SLEEPS))
    second.start()
    assert "one runs already" in second.said[0]
    second.stop()
    assert running_pid(Place(tmp_path), "one") == first.services[0].process.pid


def test_what_an_earlier_supervisor_left_running_is_started_again_when_it_ends(supervise, tmp_path):
    first = supervise(service(SLEEPS))
    first.start()
    second = supervise(service(SLEEPS))
    second.start()
    second.tend()
    orphan = first.services[0].process
    assert running_pid(Place(tmp_path), "one") == orphan.pid
    orphan.kill()
    orphan.wait()
    tend_until(second, lambda: running_pid(Place(tmp_path), "one") not in (None, orphan.pid))
    assert second.said[-1] == "one has ended, which ran already; it is started anew"
    first.services.clear()
    second.stop()
    assert running_pid(Place(tmp_path), "one") is None


def test_a_refusal_that_passes_by_itself_is_waited_out(supervise, tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "PAUSE_AT_START_S", 0.05)
    count = f"open({str(tmp_path / 'tries')!r}, 'a+')"
    source = f"f = {count}; f.write('x'); f.seek(0); n = len(f.read()); f.close()\nimport sys\n"
    source += "if n < 3: sys.exit('still connected')\n" + SLEEPS
    words = {"is_ready": lambda said: "up" in said, "explain": lambda said: "killed a moment ago" * ("still" in said)}
    supervisor = supervise(service(source, **words, patience_s=60.0))
    supervisor.start()
    assert supervisor.said == ["one is tried again for 60 s: killed a moment ago", "one is up"]


def test_a_refusal_that_lasts_counts_once_patience_is_over(supervise, monkeypatch):
    monkeypatch.setattr(supervision, "PAUSE_AT_START_S", 0.05)
    never = {"is_ready": lambda _: False, "explain": lambda _: "revoked"}
    supervisor = supervise(service("import sys; sys.exit(1)", **never, patience_s=0.5))
    with pytest.raises(DeploymentError, match="one ended with code 1 at its start: revoked"):
        supervisor.start()
