"""A SuperLink of one's own, imitated: found when it answers, named when it does not, gone with all that it started."""

import sys

import pytest

from simulations.benchmarks import superlink
from simulations.benchmarks.superlink import FlowerFault, open_superlink, processes_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")

ANSWERS = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""


@pytest.fixture
def imitate(tmp_path, monkeypatch):
    """Put a Python program in the place of flower-superlink."""

    def put(source):
        program = tmp_path / "program"
        program.write_text(f"#!{sys.executable}\n{source}")
        program.chmod(0o755)
        monkeypatch.setattr(superlink, "flower_program", lambda name: str(program))

    monkeypatch.setattr(superlink, "STOP_TIMEOUT_S", 0.3)
    return put


def test_what_it_started_is_gone_after_the_block(imitate, tmp_path):
    imitate(ANSWERS)
    with open_superlink(tmp_path / "home") as link:
        assert len(processes_of(tmp_path / "home")) == 2
        assert link.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert 'default = "local"' in (tmp_path / "home" / "config.toml").read_text()
    assert processes_of(tmp_path / "home") == []


def test_it_is_stopped_when_the_block_raises(imitate, tmp_path):
    imitate(ANSWERS)
    with pytest.raises(KeyboardInterrupt), open_superlink(tmp_path / "home"):
        raise KeyboardInterrupt
    assert processes_of(tmp_path / "home") == []


def test_an_early_end_is_named_with_its_code_and_last_words(imitate, tmp_path):
    imitate("import sys; sys.exit('the port is taken')")
    with pytest.raises(FlowerFault, match=r"(?s)ended with code 1 at its start: the port is taken"):
        open_superlink(tmp_path / "home").__enter__()


def test_silence_is_named_with_its_deadline(imitate, tmp_path, monkeypatch):
    imitate("import time; time.sleep(60)")
    monkeypatch.setattr(superlink, "START_TIMEOUT_S", 0.5)
    with pytest.raises(FlowerFault, match=r"did not answer on port \d+ within 0.5 s"):
        open_superlink(tmp_path / "home").__enter__()
    assert processes_of(tmp_path / "home") == []
