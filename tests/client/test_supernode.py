"""A site's SuperNode: a handshake that is cut off is tried again, and no deaf process stays behind."""

import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from client.services import CONNECTED
from client.supernode import was_cut_off
from strategies.deployment.certificates import key_openssh, new_key
from strategies.deployment.flower import free_port


@pytest.fixture
def balancer():
    """A port where every connection is taken and closed at once; counts them."""
    listener, taken = socket.create_server(("127.0.0.1", 0)), []

    def take():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection.getsockname())
            connection.close()

    threading.Thread(target=take, daemon=True).start()
    yield listener.getsockname()[1], taken
    listener.close()


@pytest.fixture
def supernode(authority, tmp_path):
    """Starts a SuperNode against a port of this machine."""
    key, started = tmp_path / "flower.key", []
    key.write_bytes(key_openssh(new_key()))

    def start(port):
        command = [sys.executable, "-m", "client.supernode", "--superlink", f"127.0.0.1:{port}"]
        command += ["--root-certificates", f"{authority.folder / 'ca.pem'}", "--auth-supernode-private-key", f"{key}"]
        command += ["--isolation", "process", "--port", f"{free_port()}"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("kind", "is_cut"),
    [
        (ssl.SSLEOFError, True),
        (ssl.SSLZeroReturnError, True),
        (ssl.SSLCertVerificationError, False),
        (ValueError, False),
    ],
)
def test_a_cut_is_told_from_a_wrong_certificate_also_behind_another_error(kind, is_cut):
    outer = ConnectionError("handshake")
    outer.__cause__ = kind(1, "why")
    assert was_cut_off(kind(1, "why")) == was_cut_off(outer) == is_cut


def test_a_handshake_that_is_cut_off_is_tried_again(supernode, balancer):
    port, taken = balancer
    process, deadline = supernode(port), time.monotonic() + 120
    while len(taken) < 3:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    said = process.stdout.read()
    assert "retrying in" in said
    assert "handshake error" not in said
    assert CONNECTED not in said


GIVES_UP = """
import threading, time
from flwr.supernode import cli
cli.flower_supernode = lambda: threading.Thread(target=time.sleep, args=(600,)).start()
from client.supernode import main
main()
"""


def test_a_supernode_that_gave_up_ends_although_its_server_goes_on():
    ended = subprocess.run([sys.executable, "-c", GIVES_UP], timeout=120, check=False)
    assert ended.returncode == 1
