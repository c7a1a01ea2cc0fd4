"""The coordinator's gRPC service: text space, vectors of phrases, enrolment and progress, over mutual TLS."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from dsm_core.data import ContractError, LabelContract
from dsm_core.text_space import TextSpace, TextSpaceError
from server import progress
from server.admission import Admission, Refusal
from server.banks import Banks
from server.contract_book import ContractBook
from server.gatekeeper import Gatekeeper, OnRefusal
from strategies import consortium
from strategies.messages import PROTOCOL
from strategies.proto import consortium_pb2 as wire
from strategies.proto.consortium_pb2_grpc import ConsortiumServicer, add_ConsortiumServicer_to_server
from strategies.tls import TlsFiles

_WORKERS = 32  # more than the gatekeeper's streams, each of which holds one
_CALLS = 64  # at once, waiting ones included; more are refused with RESOURCE_EXHAUSTED
SERVICE = wire.DESCRIPTOR.services_by_name["Consortium"].full_name


class ServiceError(RuntimeError):
    """The service cannot be started; the message says what to change."""


@dataclass(frozen=True)
class Desk:
    """What the service answers from.

    Attributes:
        runs: folder of run folders, for `Watch`.
        watch_lease_s: a progress stream is ended after so many seconds, and asked for again.
    """

    admission: Admission
    banks: Banks
    contracts: ContractBook
    runs: Path
    watch_lease_s: float = consortium.WATCH_LEASE_S


class TextService(ConsortiumServicer):
    """The calls of `consortium.proto`; a `Refusal` becomes the caller's status in the gatekeeper."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def About(self, request: wire.AboutRequest, context: grpc.ServicerContext) -> wire.AboutReply:
        """Clock, releases and text space."""
        return wire.AboutReply(
            unix_s=time.time(),
            release=consortium.release(),
            protocol=PROTOCOL,
            flower=consortium.release("flwr"),
            bank_hash=self._desk.banks.current_hash(),
            site=self._desk.admission.caller(context),
        )

    def GetBank(self, request: wire.GetBankRequest, context: grpc.ServicerContext) -> Iterator[wire.BankPart]:
        """The current text space in parts."""
        space = self._bank(self._desk.banks.current_hash())
        yield from consortium.bank_parts(space.to_bytes(), space.hash, request.held_hash)

    def Encode(self, request: wire.EncodeRequest, context: grpc.ServicerContext) -> wire.EncodeReply:
        """Vectors of phrases in a text space that the coordinator has or had."""
        try:
            phrases = consortium.check_phrases(request.phrases)
        except consortium.PhraseFault as fault:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if fault.is_too_much else grpc.StatusCode.INVALID_ARGUMENT
            raise Refusal(code, f"{fault}") from fault
        space = self._bank(request.bank_hash)
        try:
            vectors = self._desk.banks.able_to_encode(space).encode(phrases)
        except TextSpaceError as error:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"{error}") from error
        return wire.EncodeReply(bank_hash=space.hash, vectors=[wire.Vector(values=row) for row in vectors.tolist()])

    def Enrol(self, request: wire.EnrolRequest, context: grpc.ServicerContext) -> wire.EnrolReply:
        """Enrol the calling site, or every reason why not."""
        site = self._desk.admission.caller(context)
        try:
            contract = LabelContract.from_dict(json.loads(request.contract_json))
        except (ContractError, json.JSONDecodeError, RecursionError) as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the label contract cannot be read: {error}") from error
        reasons = []
        if contract.site != site:
            reasons.append(
                f"the label contract is of site {contract.site!r}, the certificate of site {site!r}; "
                "name the site in dataset.json as its certificate does"
            )
        current = self._desk.banks.current_hash()
        if request.bank_hash and current and request.bank_hash != current:
            reasons.append(
                f"site {site!r} holds text space {request.bank_hash[:12]}, the coordinator {current[:12]}; "
                "fetch it with `dsm-site bank`"
            )
        reasons += self._desk.contracts.conflicts(contract) if reasons else self._desk.contracts.enrol(contract)
        return wire.EnrolReply(is_accepted=not reasons, reasons=reasons, sites=sorted(self._desk.contracts.contracts()))

    def Watch(self, request: wire.WatchRequest, context: grpc.ServicerContext) -> Iterator[wire.Progress]:
        """Rounds of a run as they are done."""
        admission, folder = self._desk.admission, progress.find_run(self._desk.runs, request.run)
        site = admission.caller(context)

        def goes_on() -> bool:
            return context.is_active() and admission.caller(context) == site  # revoked meanwhile: a refusal

        yield from progress.follow(folder, site, request.after_round, self._desk.watch_lease_s, goes_on)

    def _bank(self, bank_hash: str) -> TextSpace:
        current = self._desk.banks.current_hash()
        if not current:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "the coordinator has no text space yet; it is made when the first run starts",
            )
        space = self._desk.banks.get(bank_hash)
        if space is None:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the coordinator never had text space {bank_hash[:12] or 'without a hash'}; its own is "
                f"{current[:12]}, fetch it with `dsm-site bank`",
            )
        return space


class RunningService:
    """A service that listens; a context manager that stops it."""

    def __init__(self, server: grpc.Server, port: int, health_service: health.HealthServicer) -> None:
        self._server, self.port, self._health = server, port, health_service

    def __enter__(self) -> RunningService:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, grace_s: float = 2.0) -> None:
        """Report NOT_SERVING, let calls end for `grace_s` seconds, and end the rest."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait(grace_s + 5)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the service is stopped; True where the time was over before."""
        return self._server.wait_for_termination(timeout_s)


def serve(
    desk: Desk, tls: TlsFiles, address: str = "127.0.0.1:0", on_refusal: OnRefusal = lambda site, method, reason: None
) -> RunningService:
    """Start the service and return at once.

    Args:
        tls: the consortium's authority, and the coordinator's certificate and key.
        address: host and port to listen on; port 0 takes a free one.
        on_refusal: told of refused calls, with site, method and reason.

    Raises:
        TlsError: the coordinator's certificate cannot be used.
        ServiceError: the address is taken or is none of this machine.
    """
    pems = tls.read()
    credentials = grpc.ssl_server_credentials([(pems.key, pems.certificate)], pems.ca, require_client_auth=True)
    server = grpc.server(
        ThreadPoolExecutor(_WORKERS, "consortium"),
        interceptors=[Gatekeeper(desk.admission, on_refusal)],
        options=[
            ("grpc.max_receive_message_length", consortium.MAX_REQUEST_BYTES),
            ("grpc.max_send_message_length", consortium.MAX_REPLY_BYTES),
            ("grpc.so_reuseport", 0),  # or a second service would take half of the calls
        ],
        maximum_concurrent_rpcs=_CALLS,
    )
    add_ConsortiumServicer_to_server(TextService(desk), server)
    health_service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    for name in ("", SERVICE):
        health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ServiceError(f"the service cannot listen on {address}; free the port, or choose another") from error
    server.start()
    return RunningService(server, port, health_service)
