"""The site's side of the gRPC service: what it gets, what it tries again, and what it calls each failure."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import grpc
import pytest
import torch

from client import retries
from client.bank_cache import BANK, held_bank, keep_bank
from client.reach import Address, Unreachable, handshake, resolve
from client.retries import AnswerFault, CallRefused, CoordinatorUnreachable
from client.text_client import ConsortiumClient
from dsm_core.classes import ClassKind
from dsm_core.data import ClassContract, LabelContract
from dsm_core.text_space import TextSpaceError
from strategies import consortium
from strategies.proto import consortium_pb2 as wire
from strategies.tls import TlsError

CONTRACT = LabelContract("north", 4, {"liver": ClassContract(ClassKind.ORGAN, None, 4)})


def connected(coordinator, files, timeout_s=10.0):
    return ConsortiumClient(coordinator.address, files, timeout_s, sleep=lambda seconds: None)


@pytest.fixture
def client(coordinator, north):
    with connected(coordinator, north) as client:
        yield client


@pytest.fixture
def answers(coordinator, monkeypatch):
    """Lets a test choose what the coordinator answers to a call."""

    def answer(call, behaviour):
        monkeypatch.setattr(
            "server.text_service.TextService." + call, lambda self, request, context: behaviour(request)
        )
        coordinator.service.stop(0)
        coordinator.service = coordinator.start(f"127.0.0.1:{coordinator.service.port}")

    return answer


def test_a_site_joins_fetches_the_bank_and_asks_for_vectors(coordinator, client, tmp_path):
    assert client.is_serving()
    assert client.about().site == "north"
    assert client.enrol(CONTRACT).is_accepted
    bank = client.get_bank()
    keep_bank(tmp_path / "cache", bank)
    assert held_bank(tmp_path / "cache") == coordinator.space
    assert client.get_bank(bank) is bank
    phrases = [f"gallstone {number}" for number in range(consortium.MAX_PHRASES + 3)]
    assert torch.equal(client.encode(phrases, bank.hash, bank.width), coordinator.space.encode(phrases))
    assert client.encode([], bank.hash, bank.width).shape == (0, bank.width)


def test_damaged_cache_is_named_and_none_is_none(coordinator, tmp_path):
    assert held_bank(tmp_path) is None
    (tmp_path / BANK).write_bytes(coordinator.space.to_bytes()[:-4])
    with pytest.raises(TextSpaceError, match="delete the file and fetch it anew"):
        held_bank(tmp_path)


@pytest.mark.parametrize("fault", ["short", "long", "other hash", "other content", "huge", "nothing"])
def test_bank_that_is_not_what_it_states_is_refused(coordinator, client, answers, fault):
    content, stated = coordinator.space.to_bytes(), coordinator.space.hash
    other = replace(coordinator.space, encoder="another").to_bytes()
    parts = {
        "short": [wire.BankPart(hash=stated, total_bytes=len(content), content=content[:-1])],
        "long": [wire.BankPart(hash=stated, total_bytes=10, content=content)],
        "other hash": [wire.BankPart(hash="0" * 64, total_bytes=len(content), content=content)],
        "other content": [wire.BankPart(hash=stated, total_bytes=len(other), content=other)],
        "huge": [wire.BankPart(hash=stated, total_bytes=1 << 40, content=content)],
        "nothing": [],
    }
    answers("GetBank", lambda request: iter(parts[fault]))
    with pytest.raises(AnswerFault):
        client.get_bank()


@pytest.mark.parametrize("fault", ["missing", "narrow", "NaN", "other bank"])
def test_vectors_that_cannot_be_of_the_bank_are_refused(coordinator, client, answers, fault):
    row = coordinator.space.vectors[0].tolist()
    replies = {
        "missing": wire.EncodeReply(bank_hash=coordinator.space.hash),
        "narrow": wire.EncodeReply(bank_hash=coordinator.space.hash, vectors=[wire.Vector(values=row[1:])]),
        "NaN": wire.EncodeReply(
            bank_hash=coordinator.space.hash, vectors=[wire.Vector(values=[float("nan"), *row[1:]])]
        ),
        "other bank": wire.EncodeReply(bank_hash="0" * 64, vectors=[wire.Vector(values=row)]),
    }
    answers("Encode", lambda request: replies[fault])
    with pytest.raises(AnswerFault):
        client.encode(["gallstone"], coordinator.space.hash, coordinator.space.width)


def test_a_service_that_is_away_is_tried_again_after_growing_waits(coordinator, north):
    coordinator.service.stop(0)
    port, waits = coordinator.service.port, []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            coordinator.service = coordinator.start(f"127.0.0.1:{port}")
        time.sleep(0.25)  # longer than the channel's own wait between two connections

    with ConsortiumClient(coordinator.address, north, 30.0, sleep) as client:
        assert client.about().site == "north"
    assert len(waits) >= 3
    assert all(0 <= wait_s <= retries.FIRST_WAIT_S * 2**number for number, wait_s in enumerate(waits, start=1))


def test_a_service_that_stays_away_is_named_after_the_last_attempt(north):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"localhost:{free.getsockname()[1]}"
    waits = []
    refusal = pytest.raises(CoordinatorUnreachable, match=f"nothing listens on {address}; ask the coordinator")
    with ConsortiumClient(address, north, 20.0, waits.append) as client, refusal:
        client.about()
    assert len(waits) == retries.ATTEMPTS - 1


def test_a_refused_call_is_not_repeated(coordinator, client, north):
    coordinator.revoked.append(north)
    with pytest.raises(CallRefused, match=r"PERMISSION_DENIED.*of site 'north' was revoked") as error:
        client.about()
    assert error.value.code is grpc.StatusCode.PERMISSION_DENIED


def test_wrong_bank_hash_and_impossible_phrases_are_refused(coordinator, client):
    with pytest.raises(CallRefused, match=r"FAILED_PRECONDITION.*never had text space 000000000000"):
        client.encode(["gallstone"], "0" * 64, coordinator.space.width)
    with pytest.raises(CallRefused, match=r"INVALID_ARGUMENT.*empty phrase"):
        client.encode([" "], coordinator.space.hash, coordinator.space.width)


def test_a_silent_coordinator_ends_at_the_deadline(coordinator, north, answers):
    release = threading.Event()
    answers("About", lambda request: release.wait(20))
    started = time.monotonic()
    with connected(coordinator, north, 0.6) as client, pytest.raises(CoordinatorUnreachable, match=r"within 0\.6 s"):
        client.about()
    release.set()
    assert time.monotonic() - started < 5


def test_a_progress_stream_goes_on_where_it_stopped(coordinator, client):
    run = coordinator.desk.runs / "main"
    run.mkdir()
    (run / "history.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
    port, found = coordinator.service.port, []
    for progress in client.watch("main"):
        found.append(progress.round)
        if len(found) == 2:  # the service is started again, and the run ends meanwhile
            coordinator.service.stop(0)
            (run / "history.jsonl").write_text('{"round": 1}\n{"round": 2}\n{"round": 3}\n')
            (run / "progress.json").write_text('{"phase": "finished", "round": 3, "rounds": 3, "alive": 0}')
            coordinator.service = coordinator.start(f"127.0.0.1:{port}")
    assert found == [1, 2, 3, 3]  # the last one says that the run is over


# Certificates: what the site itself can see before it calls, and what a handshake tells that gRPC does not.


def test_own_files_are_checked_before_any_call(authority, other_authority, north, tmp_path):
    cases = {
        "expired on": authority.issue("north", -9, -1),
        "is valid from": authority.issue("north", 2, 9),
        "was not issued by the authority": replace(other_authority.issue("north"), ca=north.ca),
        "is not the key of": replace(north, key=authority.issue("north").key),
        "cannot be read": replace(north, key=tmp_path / "absent.key"),
        "holds no certificate": replace(north, ca=north.key),
        "holds no private key": replace(north, key=north.certificate),
    }
    for reason, files in cases.items():
        with pytest.raises(TlsError, match=reason):
            ConsortiumClient("localhost:1", files)


def test_coordinator_of_another_authority_is_refused_at_once(coordinator, other_authority):
    refusal = pytest.raises(CoordinatorUnreachable, match=r"certificate of another authority.*this consortium's CA")
    with connected(coordinator, other_authority.issue("north")) as client, refusal:
        client.about()


def reached(address, files):
    with pytest.raises(Unreachable) as error:
        handshake(Address.parse(address), files.ca, 5.0, files)
    return error.value


def test_handshake_names_what_the_coordinator_refuses(coordinator, authority, other_authority, north):
    expired = authority.issue("north", -9, -1)
    foreign = replace(other_authority.issue("north"), ca=north.ca)
    for files, reason in ((expired, "expired on"), (foreign, "was not issued by the authority")):
        refusal = str(reached(coordinator.address, files))
        assert "hung up on seeing this site's certificate" in refusal
        assert reason in refusal
    assert handshake(Address.parse(coordinator.address), north.ca, 5.0, north).not_valid_after_utc


@contextmanager
def listener(serve):
    """A port on which a test plays the coordinator."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: serve(server.accept()[0]), daemon=True)
        thread.start()
        yield f"localhost:{server.getsockname()[1]}"
        thread.join(5)


def test_plain_text_port_and_port_that_hangs_up_are_named(north):
    def speak(connection):
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    def hang_up(connection):
        connection.close()

    with listener(speak) as address:
        assert "speaks no TLS" in str(reached(address, north))
    with listener(hang_up) as address:
        assert reached(address, north).stage == "TLS"


def test_certificate_for_another_host_and_of_an_impostor_are_refused(coordinator, authority, north):
    coordinator.service.stop(0)
    coordinator.own = authority.issue("south")  # a site's certificate on the coordinator's port
    coordinator.service = coordinator.start(f"127.0.0.1:{coordinator.service.port}")
    assert "refused" in str(reached(coordinator.address, north))
    with connected(coordinator, north) as client, pytest.raises(CoordinatorUnreachable, match="certificate"):
        client.about()


def test_expired_coordinator_is_named(authority, north):
    expired = authority.issue("coordinator", -9, -1, is_server=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(expired.certificate, expired.key)

    def shake(connection):
        with suppress(OSError):
            context.wrap_socket(connection, server_side=True)

    with listener(shake) as address:
        assert "the coordinator's certificate has expired" in str(reached(address, north))


@pytest.mark.parametrize(
    "text", ["localhost", "localhost:", "localhost:0", "localhost:99999", "https://x:1", ":5", "a:b"]
)
def test_address_that_is_none_is_refused(text):
    with pytest.raises(Unreachable, match="wanted HOST:PORT"):
        Address.parse(text)


def test_address_of_both_kinds_and_unknown_name():
    assert Address.parse("[::1]:50") == Address("::1", 50)
    assert f"{Address('::1', 50)} {Address('a', 5)}" == "[::1]:50 a:5"
    with pytest.raises(Unreachable, match=r"'no-such-host\.invalid' is not known"):
        resolve(Address("no-such-host.invalid", 1), 5.0)


def test_name_server_that_does_not_answer_is_named(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(10))
    with pytest.raises(Unreachable, match=r"name server: no answer within 0.1 s"):
        resolve(Address("somewhere", 1), 0.1)
    release.set()
