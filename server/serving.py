"""How is the gRPC service put on a port, and taken off it again?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.gatekeeper import Gatekeeper
from server.text_service import Desk, TextService
from strategies import consortium
from strategies.proto import consortium_pb2 as wire
from strategies.proto.consortium_pb2_grpc import add_ConsortiumServicer_to_server
from strategies.tls import TlsFiles

_WORKERS = 32  # more than the gatekeeper's streams, each of which holds one
_CALLS = 64  # at once, waiting ones included; more are refused with RESOURCE_EXHAUSTED
SERVICE = wire.DESCRIPTOR.services_by_name["Consortium"].full_name


class ServiceError(RuntimeError):
    """The service cannot be started; the message says what to change."""


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


def serve(desk: Desk, tls: TlsFiles, address: str = "127.0.0.1:0") -> RunningService:
    """Start the service and return at once.

    Args:
        tls: the consortium's authority, and the coordinator's certificate and key.
        address: host and port to listen on; port 0 takes a free one.

    Raises:
        TlsError: the coordinator's certificate cannot be used.
        ServiceError: the address is taken or is none of this machine.
    """
    pems = tls.read()
    credentials = grpc.ssl_server_credentials([(pems.key, pems.certificate)], pems.ca, require_client_auth=True)
    server = grpc.server(
        ThreadPoolExecutor(_WORKERS, "consortium"),
        interceptors=[Gatekeeper(desk.admission, desk.audit)],
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
