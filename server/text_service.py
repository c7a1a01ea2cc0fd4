"""The coordinator's gRPC service: text space, vectors of phrases, enrolment and progress, over mutual TLS."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from dsm_core.data import ContractError, LabelContract
from dsm_core.text_space import TextSpace, TextSpaceError
from server import progress
from server.admission import Admission, Refusal
from server.banks import BANKS, Banks
from server.consortium import Consortium
from server.contract_book import ContractBook
from strategies import consortium
from strategies.audit import AuditLog, Head
from strategies.messages import PROTOCOL
from strategies.proto import consortium_pb2 as wire
from strategies.proto.consortium_pb2_grpc import ConsortiumServicer


@dataclass(frozen=True)
class Desk:
    """What the service answers from.

    Attributes:
        runs: folder of run folders, for `Watch`.
        audit: where enrolments and refusals are recorded; an enrolment that cannot be is refused.
        watch_lease_s: a progress stream is ended after so many seconds, and asked for again.
    """

    admission: Admission
    banks: Banks
    contracts: ContractBook
    runs: Path
    audit: AuditLog | None = None
    watch_lease_s: float = consortium.WATCH_LEASE_S


def open_desk(consortium: Consortium) -> Desk:
    """What the service of a consortium answers from; members and revocations are read anew at every call."""
    return Desk(
        admission=Admission(consortium.members, consortium.revoked_serials),
        banks=Banks(consortium.folder / BANKS),
        contracts=ContractBook(consortium.folder / "contracts.json", consortium.members),
        runs=consortium.folder / "runs",
        audit=AuditLog(consortium.audit),
    )


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
            audit_head=_wire_head(self._desk.audit.head()) if self._desk.audit else None,
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
        # An encoder that cannot be loaded is the coordinator's own trouble, and its message may name a path.
        space = self._desk.banks.able_to_encode(self._bank(request.bank_hash))
        try:
            if cut := {phrase: rest for phrase in phrases if (rest := space.left_out(phrase))}:
                told = "; ".join(f"{rest!r} of {phrase!r}" for phrase, rest in cut.items())
                raise Refusal(
                    grpc.StatusCode.INVALID_ARGUMENT, f"longer than the encoder's context, it would not read {told}"
                )
            vectors = space.encode(phrases)
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
        heads: list[wire.AuditHead] = []

        def record(conflicts: list[str]) -> None:
            if self._desk.audit is not None:
                heads.append(_record_enrolment(self._desk.audit, site, request, [*reasons, *conflicts]))

        if reasons:  # not enrolled whatever else is found, and yet told everything
            conflicts = self._desk.contracts.conflicts(contract)
            record(conflicts)
        else:
            conflicts = self._desk.contracts.enrol(contract, record)
        return wire.EnrolReply(
            is_accepted=not reasons + conflicts,
            reasons=reasons + conflicts,
            sites=sorted(self._desk.contracts.contracts()),
            audit_head=heads[0] if heads else None,
        )

    def Watch(self, request: wire.WatchRequest, context: grpc.ServicerContext) -> Iterator[wire.Progress]:
        """Rounds of a run as they are done."""
        admission, folder = self._desk.admission, progress.find_run(self._desk.runs, request.run)
        site = admission.caller(context)

        def goes_on() -> bool:
            return context.is_active() and admission.caller(context) == site  # revoked meanwhile: a refusal

        lease_s = 0.0 if request.is_once else self._desk.watch_lease_s
        yield from progress.follow(folder, site, request.after_round, lease_s, goes_on)

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


def _record_enrolment(log: AuditLog, site: str, request: wire.EnrolRequest, reasons: list[str]) -> wire.AuditHead:
    """Record the site's contract, with the end of the site's own log as a witness; returns the end of this one."""
    theirs = Head(request.audit_head.records, request.audit_head.hash) if request.HasField("audit_head") else None
    head = log.record(
        "enrolment refused" if reasons else "enrolled",
        site=site,
        contract=hashlib.sha256(request.contract_json.encode()).hexdigest(),
        bank=request.bank_hash,
        reasons=reasons,
        site_log=f"{theirs}" if theirs else None,
    )
    return _wire_head(head)


def _wire_head(head: Head) -> wire.AuditHead:
    return wire.AuditHead(records=head.records, hash=head.hash)
