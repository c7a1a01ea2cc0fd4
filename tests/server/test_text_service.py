"""The coordinator's gRPC service over real mutual TLS on loopback: what it answers, and everything that it refuses."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dsm_core.classes import ATLAS, ClassKind
from dsm_core.config import TextConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.hashed_words import HashedWords
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace
from server.contract_book import ContractBook
from server.serving import ServiceError, serve
from strategies import consortium
from strategies.audit import Head
from strategies.proto import consortium_pb2 as wire
from strategies.proto.consortium_pb2_grpc import ConsortiumStub
from strategies.tls import TlsError

ORGAN, LESION = ClassKind.ORGAN, ClassKind.LESION
NORTH = LabelContract("north", 4, {"liver": ClassContract(ORGAN, None, 4)})
SOUTH = LabelContract(
    "south", 3, {"liver": ClassContract(LESION, None, 3), "nodus": ClassContract(LESION, "nowhere", 1)}
)
SERVICE = "/feddsm.consortium.v1.Consortium"


@pytest.fixture
def stub(coordinator, north):
    with coordinator.channel(north) as channel:
        yield ConsortiumStub(channel)


def refused(call, *arguments):
    """Status and reason of a call that must fail."""
    with pytest.raises(grpc.RpcError) as error:
        list(answer) if hasattr(answer := call(*arguments, timeout=10), "__next__") else None
    return error.value.code(), error.value.details()


def enrolment(contract, bank_hash=""):
    return wire.EnrolRequest(contract_json=json.dumps(contract.to_dict()), bank_hash=bank_hash)


def test_about_states_site_bank_and_releases(coordinator, stub):
    reply = stub.About(wire.AboutRequest(), timeout=10)
    assert (reply.site, reply.bank_hash) == ("north", coordinator.space.hash)
    assert reply.release == consortium.release()
    assert reply.flower.startswith("1.")


def test_bank_comes_in_parts_and_is_not_sent_again_to_a_site_that_holds_it(coordinator, stub, monkeypatch):
    monkeypatch.setattr(consortium, "PART_BYTES", 1000)
    parts = list(stub.GetBank(wire.GetBankRequest(), timeout=10))
    assert len(parts) > 3
    stated, content = consortium.join_parts(parts)
    assert TextSpace.from_bytes(content) == coordinator.space
    again = list(stub.GetBank(wire.GetBankRequest(held_hash=stated), timeout=10))
    assert [(part.hash, part.content) for part in again] == [(stated, b"")]


def test_no_bank_before_the_first_run(coordinator, stub):
    (coordinator.desk.banks.folder / "current").unlink()
    code, reason = refused(stub.GetBank, wire.GetBankRequest())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no text space yet" in reason


def test_phrases_have_the_vectors_of_the_bank_they_are_asked_in(coordinator, stub):
    newer = build_text_space([ATLAS["liver"], replace(ATLAS["spleen"], name="left thyroid lobe")], TextConfig())
    coordinator.desk.banks.put(newer)
    asked = ["Hepatic_Tumour", "gallstone", "liver"]
    for space in (coordinator.space, newer):
        reply = stub.Encode(wire.EncodeRequest(bank_hash=space.hash, phrases=asked), timeout=10)
        assert torch.equal(torch.tensor([list(v.values) for v in reply.vectors]), space.encode(asked))


def test_encoder_of_the_coordinator_serves_a_bank_that_has_none(coordinator, stub):
    """A bank that was read from bytes has no CLIP tower; the coordinator's configuration brings it."""
    space = replace(coordinator.space, encoder="a tower", phrase_encoder=None)
    coordinator.desk.banks.put(space)
    request = wire.EncodeRequest(bank_hash=space.hash, phrases=["gallstone"])
    code, reason = refused(stub.Encode, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "'gallstone'" in reason
    coordinator.desk.banks.put(space, TextConfig(encoder="offline"))
    reply = stub.Encode(request, timeout=10)
    assert torch.equal(torch.tensor(reply.vectors[0].values), coordinator.space.encode(["gallstone"])[0])


@pytest.mark.parametrize(
    ("phrases", "code", "said"),
    [
        ([], "INVALID_ARGUMENT", "no phrase"),
        (["liver", "  "], "INVALID_ARGUMENT", "an empty phrase"),
        (["x" * 201], "RESOURCE_EXHAUSTED", "201 characters; wanted 200"),
        (["liver"] * 65, "RESOURCE_EXHAUSTED", "65 phrases; one call takes 64"),
        (["?!"], "NOT_FOUND", "needs words"),
    ],
)
def test_impossible_phrases_are_refused_with_the_limit(coordinator, stub, phrases, code, said):
    found, reason = refused(stub.Encode, wire.EncodeRequest(bank_hash=coordinator.space.hash, phrases=phrases))
    assert found.name == code
    assert said in reason


def test_phrase_that_the_encoder_cannot_read_to_its_end_is_refused_saying_what(coordinator, stub, monkeypatch):
    monkeypatch.setattr(
        HashedWords, "left_out", lambda encoder, phrase: "of the bile duct" if "stone" in phrase else ""
    )
    request = wire.EncodeRequest(bank_hash=coordinator.space.hash, phrases=["abscess", "stone of the bile duct"])
    code, reason = refused(stub.Encode, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "would not read 'of the bile duct' of 'stone of the bile duct'" in reason


@pytest.mark.parametrize("bank_hash", ["0" * 64, "", "../../contracts"])
def test_wrong_bank_hash_is_refused_naming_both(coordinator, stub, bank_hash):
    code, reason = refused(stub.Encode, wire.EncodeRequest(bank_hash=bank_hash, phrases=["liver"]))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert coordinator.space.hash[:12] in reason
    reply = stub.Enrol(enrolment(NORTH, "1" * 64), timeout=10)
    assert not reply.is_accepted
    assert "111111111111" in reply.reasons[0]
    assert coordinator.space.hash[:12] in reply.reasons[0]


def test_enrolment_is_kept_and_may_be_repeated(coordinator, stub):
    for _ in range(2):
        reply = stub.Enrol(enrolment(NORTH, coordinator.space.hash), timeout=10)
        assert (reply.is_accepted, list(reply.reasons), list(reply.sites)) == (True, [], ["north"])
    assert ContractBook(coordinator.desk.contracts.path, lambda: {"north"}).contracts() == {"north": NORTH}


def test_enrolment_puts_the_end_of_each_log_into_the_other(coordinator, stub):
    request = enrolment(NORTH)
    request.audit_head.CopyFrom(wire.AuditHead(records=7, hash="a" * 64))
    reply = stub.Enrol(request, timeout=10)
    (record,) = coordinator.recorded("enrolled")
    assert (record["site"], record["site_log"], record["reasons"]) == ("north", "7:" + "a" * 64, [])
    told = Head(reply.audit_head.records, reply.audit_head.hash)
    assert coordinator.audit.verify(told).is_intact
    about = stub.About(wire.AboutRequest(), timeout=10).audit_head
    assert Head(about.records, about.hash) == told


def test_enrolment_that_cannot_be_recorded_is_refused(coordinator, stub):
    coordinator.audit.record("began")
    coordinator.audit.path.write_text("")
    code, reason = refused(stub.Enrol, enrolment(NORTH))
    assert code is grpc.StatusCode.INTERNAL
    assert reason == "AuditError at the coordinator; its own log has the details"
    assert coordinator.desk.contracts.contracts() == {}


def test_conflicting_contract_is_refused_with_every_reason_and_both_sites(coordinator, stub, authority):
    stub.Enrol(enrolment(NORTH), timeout=10)
    with coordinator.channel(authority.issue("south")) as channel:
        south = ConsortiumStub(channel)
        reply = south.Enrol(enrolment(SOUTH), timeout=10)
        assert not reply.is_accepted
        assert len(reply.reasons) == 2
        assert "lesion at south, organ at north" in reply.reasons[0]
        assert "'nodus' lies in an organ that no site labels" in reply.reasons[1]
        assert list(reply.sites) == ["north"]
        coordinator.sites.remove("north")
        again = south.Enrol(enrolment(replace(SOUTH, classes={"liver": SOUTH.classes["liver"]})), timeout=10)
        assert again.is_accepted  # a site that left binds nobody


def test_contract_of_another_site_is_refused_and_not_kept(coordinator, stub):
    reply = stub.Enrol(enrolment(replace(NORTH, site="south")), timeout=10)
    assert not reply.is_accepted
    assert "of site 'south', the certificate of site 'north'" in reply.reasons[0]
    assert coordinator.desk.contracts.contracts() == {}


@pytest.mark.parametrize(
    "contract", ["", "{", "[]", '{"site": "north"}', "[" * 100_000, '{"site": "north", "cases": -1}']
)
def test_contract_that_is_none_is_refused(stub, contract):
    code, reason = refused(stub.Enrol, wire.EnrolRequest(contract_json=contract))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "label contract" in reason


def test_oversized_request_is_refused_with_the_limit(stub):
    code, reason = refused(stub.Enrol, wire.EnrolRequest(contract_json="x" * (consortium.MAX_REQUEST_BYTES + 1)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{consortium.MAX_REQUEST_BYTES}" in reason


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff", b"\x0a\xff\x01", b"\x0a\x02\xff\xfe"])
def test_malformed_request_is_refused_by_name(coordinator, north, content):
    with coordinator.channel(north) as channel:
        code, reason = refused(channel.unary_unary(f"{SERVICE}/Encode"), content)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "no request of Encode" in reason
        code, _ = refused(channel.unary_stream(f"{SERVICE}/Watch"), content)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused(channel.unary_unary(f"{SERVICE}/NoSuchCall"), b"")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_revoked_site_is_refused_on_an_open_connection_and_once_in_the_record(coordinator, stub, north):
    stub.About(wire.AboutRequest(), timeout=10)
    coordinator.revoked.append(north)
    for call, request in ((stub.About, wire.AboutRequest()), (stub.About, wire.AboutRequest())):
        code, reason = refused(call, request)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "of site 'north' was revoked" in reason
    (refusal,) = coordinator.recorded("refused")
    assert (refusal["site"], refusal["call"]) == ("north", "About")
    assert "was revoked" in refusal["reason"]


def test_revocation_ends_a_progress_stream(coordinator, stub, north):
    run = coordinator.desk.runs / "main"
    run.mkdir()
    (run / "history.jsonl").write_text('{"round": 1, "sites": ["north"], "refused": {}, "failed": {}}\n')
    stream = stub.Watch(wire.WatchRequest(run="main"), timeout=10)
    assert next(stream).round == 1
    coordinator.revoked.append(north)
    with pytest.raises(grpc.RpcError) as error:
        next(stream)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_certificate_of_no_member_is_refused_by_name_everywhere(coordinator, authority):
    with coordinator.channel(authority.issue("stranger")) as channel:
        for call, request in (
            (ConsortiumStub(channel).About, wire.AboutRequest()),
            (ConsortiumStub(channel).GetBank, wire.GetBankRequest()),
            (health_pb2_grpc.HealthStub(channel).Check, health_pb2.HealthCheckRequest()),
        ):
            code, reason = refused(call, request)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "'stranger' does not belong" in reason


def test_wrong_authority_expired_certificate_and_plain_text_never_reach_a_call(
    coordinator, authority, other_authority, north
):
    foreign = replace(other_authority.issue("north"), ca=north.ca)
    expired = authority.issue("north", from_days=-10, to_days=-1)
    as_server = coordinator.own  # a coordinator's certificate opens no site's door
    plain = grpc.insecure_channel(coordinator.address)
    for channel in (*map(coordinator.channel, (foreign, expired, as_server)), plain):
        with channel:
            code, _ = refused(ConsortiumStub(channel).About, wire.AboutRequest())
            assert code is grpc.StatusCode.UNAVAILABLE
    assert coordinator.recorded("refused") == []


def test_watch_tells_names_to_all_and_reasons_to_the_site_itself(coordinator, stub, authority):
    run = coordinator.desk.runs / "main"
    run.mkdir()
    told = {"refused": {"north": "NaN in a tensor"}, "failed": {"east": "no answer"}, "loss": 0.5, "seconds": 2.0}
    rounds = [{"round": 1, "sites": ["south"], **told}, {"round": 2, "sites": [], **told}]
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds) + '{"round": 3')
    (run / "progress.json").write_text('{"phase": "finished", "round": 2, "rounds": 2, "alive": 0}')
    first, second, last = stub.Watch(wire.WatchRequest(run="main"), timeout=10)
    assert (list(first.sites), list(first.refused), list(first.failed)) == (["south"], ["north"], ["east"])
    assert dict(first.reasons) == {"north": "NaN in a tensor"}
    assert (first.loss, first.is_done, second.is_over) == (0.5, True, False)
    assert (last.phase, last.is_done, last.is_over, last.is_silent) == ("finished", False, True, False)
    with coordinator.channel(authority.issue("south")) as channel:
        assert not next(ConsortiumStub(channel).Watch(wire.WatchRequest(run="main"), timeout=10)).reasons


def test_watch_sees_a_round_when_it_is_done_and_ends_with_its_lease(coordinator, stub):
    run = coordinator.desk.runs / "main"
    run.mkdir()
    stream = stub.Watch(wire.WatchRequest(run="main", after_round=4), timeout=10)
    threading.Timer(0.1, lambda: (run / "history.jsonl").write_text('{"round": 4}\n{"round": 5}\n')).start()
    assert [progress.round for progress in stream] == [5]


@pytest.mark.parametrize(
    ("run", "code"), [("../banks", "INVALID_ARGUMENT"), ("", "INVALID_ARGUMENT"), ("x", "NOT_FOUND")]
)
def test_run_that_is_none_is_refused(coordinator, stub, run, code):
    assert refused(stub.Watch, wire.WatchRequest(run=run))[0].name == code


def test_watch_names_the_sites_that_a_run_waits_for_and_its_silence(coordinator, stub):
    run = coordinator.desk.runs / "main"
    run.mkdir()
    state = {"phase": "training", "round": 3, "rounds": 9, "reason": "none of a site's business"}
    (run / "progress.json").write_text(json.dumps({**state, "waiting_for": ["b", "a"], "alive": time.time()}))
    stream = stub.Watch(wire.WatchRequest(run="main"), timeout=10)
    first = next(stream)
    assert (first.round, first.rounds, first.phase, list(first.waiting_for)) == (3, 9, "training", ["a", "b"])
    assert not first.is_silent
    (run / "progress.json").write_text(json.dumps({**state, "waiting_for": ["a"], "alive": time.time() - 60}))
    second = next(stream)
    assert (list(second.waiting_for), second.is_silent) == (["a"], True)


def test_a_site_cannot_take_every_thread_with_streams(coordinator, stub):
    (coordinator.desk.runs / "main").mkdir()
    streams = [stub.Watch(wire.WatchRequest(run="main"), timeout=10) for _ in range(5)]
    endings = []
    for stream in streams:
        try:
            endings.append(list(stream))
        except grpc.RpcError as error:
            endings.append(error.code())
    assert sorted(map(str, endings)) == sorted(["[]"] * 4 + ["StatusCode.RESOURCE_EXHAUSTED"])
    assert list(stub.GetBank(wire.GetBankRequest(), timeout=10))


def test_error_of_the_coordinator_says_no_more_than_its_kind(coordinator, stub):
    (coordinator.desk.banks.folder / f"{coordinator.space.hash}.safetensors").write_bytes(b"damaged")
    code, reason = refused(stub.GetBank, wire.GetBankRequest())
    assert code is grpc.StatusCode.INTERNAL
    assert reason == "TextSpaceError at the coordinator; its own log has the details"


def test_encoder_that_cannot_be_loaded_is_named_in_the_coordinators_log_only(coordinator, stub, caplog, tmp_path):
    space = replace(coordinator.space, encoder="a tower", phrase_encoder=None)
    coordinator.desk.banks.put(space, TextConfig(encoder="bank", bank=str(tmp_path / "secret" / "bank.safetensors")))
    code, reason = refused(stub.Encode, wire.EncodeRequest(bank_hash=space.hash, phrases=["gallstone"]))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in reason
    assert "secret" in caplog.text


def test_health_service_answers_members(coordinator, north):
    with coordinator.channel(north) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "feddsm.consortium.v1.Consortium"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_service_refuses_a_taken_port_and_an_expired_certificate_of_its_own(coordinator, authority):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServiceError, match="cannot listen on 127"):
            serve(coordinator.desk, coordinator.own, f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(TlsError, match="expired on"):
        serve(coordinator.desk, authority.issue("coordinator", -9, -1, is_server=True))
