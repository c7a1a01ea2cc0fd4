"""The coordinator's command for its gRPC service; `dsm-server start` runs it, and a container or systemd may."""

from __future__ import annotations

import argparse

from strategies.deployment.command_line import Commands, add_folder


def add_commands(commands: Commands) -> None:
    """Add `service`."""
    service = commands.add_parser(
        "service",
        help="the gRPC service alone: text space, phrases, enrolment, progress (`start` runs it too)",
        description="Serve the members of the consortium over mutual TLS until it is ended.",
    )
    add_folder(service, "consortium")
    service.set_defaults(run=_service)


def _service(options: argparse.Namespace) -> int:
    from server.consortium import load_consortium
    from server.serving import ServiceError, serve
    from server.text_service import open_desk
    from strategies.deployment.daemon import Ended, endable, say
    from strategies.deployment.errors import DeploymentError
    from strategies.tls import TlsFiles

    consortium = load_consortium(options.folder)
    tls = TlsFiles(consortium.ca_certificate, consortium.server_certificate, consortium.server_key)
    host = f"[{consortium.service_host}]" if ":" in consortium.service_host else consortium.service_host
    try:
        with endable(), serve(open_desk(consortium), tls, f"{host}:{consortium.service_port}") as service:
            say(f"the gRPC service of {consortium.name} listens on port {service.port}")
            service.wait()
    except ServiceError as error:
        raise DeploymentError(f"{error}") from error
    except Ended as ended:
        say(f"ended by {ended}")
    return 0
