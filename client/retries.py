"""When is a call to the coordinator tried again, and what is it called when it has failed for good?"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from client.reach import Address, Unreachable, handshake, resolve
from strategies.tls import TlsFiles

Answer = TypeVar("Answer")

ATTEMPTS = 8  # over ten seconds on average: a service that restarts loads PyTorch first
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0
_LEAST_S = 0.2  # with less time than this before the deadline, another attempt cannot succeed
_DIAGNOSIS_S = 5.0


class ConsortiumError(RuntimeError):
    """A call that gave no answer; the message says why."""


class CoordinatorUnreachable(ConsortiumError):
    """No connection, after retries; the message names what failed first: name, port or TLS."""


class CallRefused(ConsortiumError):
    """The coordinator answers and refuses: a revoked site, a wrong text space, an impossible request.

    Attributes:
        code: gRPC status.
    """

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(f"the coordinator refused ({code.name}): {reason}")
        self.code = code


class AnswerFault(ConsortiumError):
    """The coordinator answered with something that cannot be used; nothing of it is kept."""


class Retry:
    """Attempts at one call under one deadline."""

    def __init__(
        self, address: Address, tls: TlsFiles, timeout_s: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._address, self._tls, self._timeout_s, self._sleep = address, tls, timeout_s, sleep
        self._deadline = time.monotonic() + timeout_s
        self._failures = 0

    @property
    def left_s(self) -> float:
        """Seconds before the deadline."""
        return self._deadline - time.monotonic()

    def pause(self, error: grpc.RpcError) -> None:
        """Wait before the next attempt: twice as long each time, with full jitter.

        Jitter, since every site of a consortium loses a coordinator that restarts at the same moment.

        Raises:
            ConsortiumError: another attempt is of no use.
        """
        self._failures += 1
        code, said = error.code(), " ".join(f"{error.details()}".split())
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise CoordinatorUnreachable(f"{self._address} gave no answer within {self._timeout_s:g} s") from error
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise CallRefused(code, "it does not know this call; install the same release on both sides") from error
        if code is not grpc.StatusCode.UNAVAILABLE:
            raise CallRefused(code, said) from error
        cause = self._cause()
        wait_s = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._failures))
        # A certificate does not become right by asking again; a name, a port or a server that restarts may.
        is_final = cause is not None and cause.stage in ("address", "TLS")
        if is_final or self._failures == ATTEMPTS or self.left_s < wait_s + _LEAST_S:
            raise CoordinatorUnreachable(f"the coordinator cannot be reached: {cause or said}") from error
        self._sleep(wait_s)

    def _cause(self) -> Unreachable | None:
        """gRPC's own words are the same for every TLS fault; a handshake by hand tells them apart."""
        limit_s = max(0.1, min(_DIAGNOSIS_S, self.left_s))
        try:
            resolve(self._address, limit_s)
            handshake(self._address, self._tls.ca, limit_s, self._tls)
        except Unreachable as cause:
            return cause
        return None


def retried(retry: Retry, call: Callable[[float], Answer]) -> Answer:
    """The answer of a call that may be repeated without changing what it did.

    Args:
        call: is given the seconds that are left.

    Raises:
        ConsortiumError: see `Retry.pause`.
    """
    while True:
        try:
            return call(max(0.0, retry.left_s))
        except grpc.RpcError as error:
            retry.pause(error)
