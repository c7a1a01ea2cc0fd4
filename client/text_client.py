"""How a site asks the coordinator's gRPC service: mutual TLS, a deadline on every call, retries, errors with names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import grpc
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import Tensor

from client.reach import Address
from client.retries import FIRST_WAIT_S, LONGEST_WAIT_S, Answer, AnswerFault, Retry, retried
from dsm_core.data import LabelContract
from dsm_core.text_space import TextSpace, TextSpaceError
from strategies import consortium
from strategies.proto import consortium_pb2 as wire
from strategies.proto.consortium_pb2_grpc import ConsortiumStub
from strategies.tls import TlsFiles


class ConsortiumClient:
    """Calls to one coordinator. Every call may be repeated without changing what it did, so all of them are retried."""

    def __init__(
        self, address: str, tls: TlsFiles, timeout_s: float = 30.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Open a channel; the first call connects.

        Args:
            address: HOST:PORT. timeout_s: for each call with its retries.

        Raises:
            TlsError: the site's certificate cannot be used.
            Unreachable: the address is none.
        """
        self._address, self._tls, self._timeout_s, self._sleep = Address.parse(address), tls, timeout_s, sleep
        pems = tls.read()
        options = [
            ("grpc.max_receive_message_length", consortium.MAX_REPLY_BYTES),
            ("grpc.max_send_message_length", consortium.MAX_REQUEST_BYTES),
            ("grpc.enable_retries", 0),  # ours cover a stream that breaks in its middle, too
            ("grpc.initial_reconnect_backoff_ms", int(1000 * FIRST_WAIT_S)),
            ("grpc.min_reconnect_backoff_ms", int(1000 * FIRST_WAIT_S)),
            ("grpc.max_reconnect_backoff_ms", int(1000 * LONGEST_WAIT_S)),
        ]
        credentials = grpc.ssl_channel_credentials(pems.ca, pems.key, pems.certificate)
        self._channel = grpc.secure_channel(f"{self._address}", credentials, options)
        self._stub = ConsortiumStub(self._channel)

    def __enter__(self) -> ConsortiumClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._channel.close()

    def about(self) -> wire.AboutReply:
        """Clock, releases and text space of the coordinator."""
        return self._retried(lambda left_s: self._stub.About(wire.AboutRequest(), timeout=left_s))

    def is_serving(self) -> bool:
        """What the standard health service says."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        reply = self._retried(lambda left_s: stub.Check(health_pb2.HealthCheckRequest(), timeout=left_s))
        return reply.status == health_pb2.HealthCheckResponse.SERVING

    def get_bank(self, held: TextSpace | None = None) -> TextSpace:
        """The coordinator's text space; the one that the site holds where it is the same.

        Raises:
            ConsortiumError: as every call; `AnswerFault` where the content has another hash than stated.
        """
        request = wire.GetBankRequest(held_hash=held.hash if held else "")
        try:
            stated, content = self._retried(
                lambda left_s: consortium.join_parts(self._stub.GetBank(request, timeout=left_s))
            )
            if content is None and held is not None and stated == held.hash:
                return held
            if content is None:
                raise consortium.BankFault("the coordinator sent no content; ask again")
            space = TextSpace.from_bytes(content)
        except (consortium.BankFault, TextSpaceError) as error:
            raise AnswerFault(f"{error}") from error
        if space.hash != stated:
            raise AnswerFault(f"the coordinator states text space {stated[:12]} and sent {space.hash[:12]}; ask again")
        return space

    def encode(self, phrases: Sequence[str], bank_hash: str, width: int) -> Tensor:
        """Centred unit vectors of phrases in a text space, (k, E) float32; any number of phrases, in several calls."""
        starts = range(0, len(phrases), consortium.MAX_PHRASES)
        rows = [self._encode(phrases[at : at + consortium.MAX_PHRASES], bank_hash, width) for at in starts]
        return torch.cat(rows) if rows else torch.zeros(0, width)

    def _encode(self, phrases: Sequence[str], bank_hash: str, width: int) -> Tensor:
        request = wire.EncodeRequest(bank_hash=bank_hash, phrases=phrases)
        reply = self._retried(lambda left_s: self._stub.Encode(request, timeout=left_s))
        rows = [list(vector.values) for vector in reply.vectors]
        if reply.bank_hash != bank_hash or [len(row) for row in rows] != [width] * len(phrases):
            raise AnswerFault(
                f"asked for {len(phrases)} vectors of {width} numbers in text space {bank_hash[:12]}, found "
                f"{len(rows)} of {sorted({len(row) for row in rows})} in {reply.bank_hash[:12]}"
            )
        vectors = torch.tensor(rows)
        if not torch.allclose(vectors.norm(dim=1), torch.ones(len(rows)), atol=1e-3):  # NaN is not close either
            raise AnswerFault("the coordinator sent vectors that are not of unit length; ask its administrator")
        return vectors

    def enrol(
        self, contract: LabelContract, bank_hash: str = "", audit_head: wire.AuditHead | None = None
    ) -> wire.EnrolReply:
        """Join with a label contract; `is_accepted`, or every reason why not."""
        request = wire.EnrolRequest(
            contract_json=json.dumps(contract.to_dict(), sort_keys=True), bank_hash=bank_hash, audit_head=audit_head
        )
        return self._retried(lambda left_s: self._stub.Enrol(request, timeout=left_s))

    def watch(self, run: str, after_round: int = 0, follow: bool = True) -> Iterator[wire.Progress]:
        """Rounds of a run as they are done, and what it waits for, until it is over.

        A stream that breaks goes on where it stopped.

        Args:
            follow: otherwise only what the coordinator knows now.
        """
        retry = self._retry()
        while True:
            request = wire.WatchRequest(run=run, after_round=after_round, is_once=not follow)
            stream = self._stub.Watch(request, timeout=consortium.WATCH_LEASE_S + self._timeout_s)
            try:
                for progress in stream:
                    retry = self._retry()
                    after_round = progress.round if progress.is_done else after_round
                    yield progress
                    if progress.is_over:
                        return
                retry = self._retry()
                if not follow:
                    return
            except grpc.RpcError as error:
                retry.pause(error)
            finally:
                stream.cancel()

    def _retry(self) -> Retry:
        return Retry(self._address, self._tls, self._timeout_s, self._sleep)

    def _retried(self, call: Callable[[float], Answer]) -> Answer:
        return retried(self._retry(), call)
