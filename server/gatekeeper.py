"""What happens before and around every gRPC call: identity, readable requests, refusals with their reason."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from server.admission import Admission, Refusal
from strategies.audit import AuditError, AuditLog

log = logging.getLogger(__name__)

_STREAMS, _STREAMS_OF_A_SITE = 24, 4  # a stream holds one of the service's threads for as long as it lasts
_REPEATS_AFTER_S = 60.0
_REMEMBERED = 1000


class _Unreadable:
    """In the place of a request whose bytes are not its message."""


class Gatekeeper(grpc.ServerInterceptor):
    """Lets in sites of the consortium only; turns `Refusal` into a status, and any other error into a bare one."""

    def __init__(self, admission: Admission, audit: AuditLog | None = None) -> None:
        """Set the rule.

        Args:
            audit: where refusals are recorded; the same one no more than once a minute, or a site could fill the disk.
        """
        self._admission, self._audit = admission, audit
        self._told: dict[tuple[str, str, str], float] = {}
        self._streams: Counter[str] = Counter()
        self._lock = threading.Lock()

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The handler of a call with the gate around it; None for a method that does not exist."""
        handler = continuation(details)
        if handler is None:
            return None
        method = details.method.rsplit("/", 1)[-1]
        parse = _tolerant(handler.request_deserializer)
        if handler.response_streaming:

            def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                try:
                    with self._streaming(self._admit(request, context, method)):
                        yield from handler.unary_stream(request, context)
                    return
                except Exception as error:
                    refusal = _as_refusal(error, method)
                self._refuse(refusal, context, method)

            return grpc.unary_stream_rpc_method_handler(stream, parse, handler.response_serializer)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._admit(request, context, method)
                return handler.unary_unary(request, context)
            except Exception as error:
                refusal = _as_refusal(error, method)
            self._refuse(refusal, context, method)

        return grpc.unary_unary_rpc_method_handler(answer, parse, handler.response_serializer)

    def _admit(self, request: Any, context: grpc.ServicerContext, method: str) -> str:
        site = self._admission.caller(context)
        if isinstance(request, _Unreadable):
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the bytes are no request of {method}; install the same release at site and coordinator",
            )
        return site

    @contextmanager
    def _streaming(self, site: str) -> Iterator[None]:
        with self._lock:
            if self._streams.total() >= _STREAMS or self._streams[site] >= _STREAMS_OF_A_SITE:
                raise Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self._streams[site]} streams of site {site!r} and {self._streams.total()} in all are open; "
                    f"at most {_STREAMS_OF_A_SITE} and {_STREAMS}, close one",
                )
            self._streams[site] += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams[site] -= 1

    def _refuse(self, refusal: Refusal, context: grpc.ServicerContext, method: str) -> None:
        try:
            site = self._admission.caller(context)
        except Refusal:
            names = context.auth_context().get("x509_common_name", (b"unknown",))
            site = bytes(names[0]).decode(errors="replace")[:100]
        log.warning("%s refused to %s: %s", method, site, refusal.reason)
        now, refused = time.monotonic(), (site, method, refusal.reason)
        if now - self._told.get(refused, -_REPEATS_AFTER_S) >= _REPEATS_AFTER_S:
            self._told = dict([*self._told.items(), (refused, now)][-_REMEMBERED:])
            self._record(*refused)
        context.abort(refusal.code, refusal.reason)

    def _record(self, site: str, method: str, reason: str) -> None:
        if self._audit is None:
            return
        try:
            self._audit.record("refused", site=site, call=method, reason=reason)
        except AuditError as error:  # the refusal stands, recorded or not
            log.error("%s", error)


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that lets the gate refuse unreadable bytes by name; gRPC itself would call them an internal error."""

    def parse_or_mark(content: bytes) -> Any:
        try:
            return parse(content)
        except Exception:
            return _Unreadable()

    return parse_or_mark


def _as_refusal(error: Exception, method: str) -> Refusal:
    if isinstance(error, Refusal):
        return error
    log.error("%s failed", method, exc_info=error)
    return Refusal(grpc.StatusCode.INTERNAL, f"{type(error).__name__} at the coordinator; its own log has the details")
