"""Every way in which a coordinator cannot be reached, or is not the coordinator, has its own sentence."""

import socket
import ssl
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from server.authority import Authority
from strategies.deployment.certificates import certificate_pem, key_pem, new_key
from strategies.deployment.flower import free_port
from strategies.deployment.handshake import HandshakeError, check_coordinator, split_address

CRLF = b"\r\n"


@pytest.fixture(scope="module")
def authority():
    return Authority.create("demo", datetime.now(UTC) - timedelta(days=500))


@pytest.fixture
def ca(authority, tmp_path):
    path = tmp_path / "ca.crt"
    path.write_bytes(certificate_pem(authority.certificate))
    return path


@pytest.fixture
def serve(tmp_path):
    """Answers one connection at a time with a certificate, or in plain text, or not at all; returns its address."""
    sockets = []

    def start(certificate=None, key=None, plain=b""):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)
        context = None
        if certificate is not None:
            (tmp_path / "server.pem").write_bytes(key_pem(key) + certificate_pem(certificate))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "server.pem")

        def answer():
            try:
                connection, _ = listener.accept()
                with closing(connection):
                    if context is not None:
                        context.wrap_socket(connection, server_side=True).close()
                    elif plain:
                        connection.recv(1000)
                        connection.sendall(plain)
                    else:
                        connection.recv(1000)
                        connection.recv(1000)
            except OSError:
                pass

        threading.Thread(target=answer, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in sockets:
        listener.close()


def issued(authority, hosts=("127.0.0.1",), days_ago=0):
    key = new_key()
    return authority.issue_server(hosts, key.public_key(), datetime.now(UTC) - timedelta(days=days_ago)), key


def test_the_consortium_s_coordinator_is_accepted(authority, serve, ca):
    check_coordinator(serve(*issued(authority)), ca)


def test_another_authority_s_certificate_is_refused(serve, ca):
    with pytest.raises(HandshakeError, match="was not issued by this consortium's authority"):
        check_coordinator(serve(*issued(Authority.create("demo"))), ca)


def test_an_expired_certificate_is_refused(authority, serve, ca):
    with pytest.raises(HandshakeError, match="has expired; the coordinator renews it"):
        check_coordinator(serve(*issued(authority, days_ago=400)), ca)


def test_a_certificate_of_the_future_points_at_the_clocks(authority, serve, ca):
    with pytest.raises(HandshakeError, match="compare this machine's clock"):
        check_coordinator(serve(*issued(authority, days_ago=-2)), ca)


def test_a_certificate_for_another_host_names_the_remedy(authority, serve, ca):
    with pytest.raises(HandshakeError, match=r"does not state 127.0.0.1; .*`dsm-server rotate --host 127.0.0.1`"):
        check_coordinator(serve(*issued(authority, hosts=("fed.example.org",))), ca)


def test_a_server_that_speaks_plain_text_is_refused(serve, ca):
    with pytest.raises(HandshakeError, match="speaks no TLS that this site accepts"):
        check_coordinator(serve(plain=b"HTTP/1.1 400 Bad Request\r\n\r\n"), ca)


def test_silence_has_a_deadline(serve, ca):
    with pytest.raises(HandshakeError, match=r"does not answer within 0.3 s; does a firewall"):
        check_coordinator(serve(), ca, timeout_s=0.3)


def test_nobody_listens_and_nobody_is_called_so(ca):
    with pytest.raises(HandshakeError, match="connection refused; is the coordinator running"):
        check_coordinator(f"127.0.0.1:{free_port()}", ca)
    with pytest.raises(HandshakeError, match=r"fed.invalid is no name that this machine can resolve"):
        check_coordinator("fed.invalid:9443", ca)


def test_addresses_of_both_kinds_are_split():
    assert split_address("fed.example.org:9443") == ("fed.example.org", 9443)
    assert split_address("[::1]:9443") == ("::1", 9443)


def test_a_proxy_that_does_not_let_through_is_named(serve, ca, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://{serve(plain=b'HTTP/1.1 407 Proxy Authentication Required' + 2 * CRLF)}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(HandshakeError, match=r"fed.example.org:9443: .*407 proxy authentication required"):
        check_coordinator("fed.example.org:9443", ca)
