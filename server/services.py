"""Which programs does a coordinator run, with which words? SuperLink, SuperExec, the gRPC service, and nginx."""

from __future__ import annotations

import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable

from server.consortium import Consortium
from server.nginx import PROXY, proxy_program
from server.run_config import HOME as CONSORTIUM
from strategies.deployment.flower import BRISK, HOME, LOOPBACK, QUIET, direct_loopback, flower_program, program_path
from strategies.deployment.processes import Place, Program
from strategies.deployment.supervision import Service

SUPERLINK, SUPEREXEC, TEXT_SERVICE = "superlink", "superexec", "text-service"
NAMES = (PROXY, TEXT_SERVICE, SUPEREXEC, SUPERLINK)  # in the order in which they are asked to end
# Flower silences gRPC in every process that imports it, and in what that one starts; why a handshake was refused is
# said nowhere but in gRPC's own log.
HANDSHAKES = {"GRPC_VERBOSITY": "INFO"}
HEALTH_TIMEOUT_S = 2.0


def place_of(consortium: Consortium) -> Place:
    return Place(consortium.folder)


def coordinator_services(consortium: Consortium, with_proxy: bool = True) -> list[Service]:
    """The coordinator's programs in the order of their start.

    Args:
        with_proxy: False where a proxy outside of our hands stands before the SuperLink.

    Raises:
        DeploymentError: Flower or nginx is not installed.
    """
    services = [Service(superlink(consortium), is_ready=_answers(consortium)), Service(superexec(consortium))]
    services.append(Service(text_service(consortium), is_ready=_accepts(consortium.service_port)))
    if consortium.has_proxy and with_proxy:
        services.append(Service(proxy_program(consortium), is_ready=_accepts(consortium.fleet_port)))
    return services


def superlink(consortium: Consortium) -> Program:
    """Flower's server: TLS, known SuperNodes only, its state in a database that survives a crash."""
    command = (
        flower_program("flower-superlink"),
        *("--host", LOOPBACK, "--port", f"{consortium.flower_port}"),
        *("--ssl-certfile", f"{consortium.server_certificate}", "--ssl-keyfile", f"{consortium.server_key}"),
        *("--ssl-ca-certfile", f"{consortium.ca_certificate}"),
        "--enable-supernode-auth",
        *("--database", f"{consortium.flower_home / 'state.db'}"),
        *("--isolation", "process", "--superexec-auth-secret-file", f"{consortium.superexec_secret}"),
        "--disable-runtime-dependency-installation",
    )
    return Program(SUPERLINK, command, _environment(consortium), consortium.flower_port)


def superexec(consortium: Consortium) -> Program:
    """What starts the ServerApp in a process of its own."""
    command = (
        flower_program("flower-superexec"),
        *("--runtime-api-address", f"{LOOPBACK}:{consortium.flower_port}"),
        *("--root-certificates", f"{consortium.ca_certificate}"),
        *("--superexec-auth-secret-file", f"{consortium.superexec_secret}"),
    )
    # What the sites must not see travels by the environment, which the ServerApp inherits.
    return Program(SUPEREXEC, command, {**_environment(consortium), CONSORTIUM: f"{consortium.folder}"})


def text_service(consortium: Consortium) -> Program:
    """The gRPC service for text space, phrases, enrolment and progress; public, and needs no proxy."""
    command = (sys.executable, "-m", "server.cli", "service", "--folder", f"{consortium.folder}")
    return Program(TEXT_SERVICE, command, HANDSHAKES, consortium.service_port)


def _environment(consortium: Consortium) -> dict[str, str]:
    return {**QUIET, **BRISK, **direct_loopback(), HOME: f"{consortium.flower_home}", **program_path()}


def _answers(consortium: Consortium) -> Callable[[str], bool]:
    context = ssl.create_default_context(cafile=f"{consortium.ca_certificate}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def answers(_: str) -> bool:
        try:
            with opener.open(f"https://{LOOPBACK}:{consortium.flower_port}/health", timeout=HEALTH_TIMEOUT_S):
                return True
        except OSError:
            return False

    return answers


def _accepts(port: int) -> Callable[[str], bool]:
    def accepts(_: str) -> bool:
        with socket.socket() as probe:
            probe.settimeout(HEALTH_TIMEOUT_S)
            return probe.connect_ex((LOOPBACK, port)) == 0

    return accepts
