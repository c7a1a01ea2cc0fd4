"""The coordinator's commands for identities: who belongs to the consortium."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from strategies.deployment.command_line import Commands, add_folder, port

if TYPE_CHECKING:
    from server.consortium import Consortium

FLEET_PORT, SERVICE_PORT, FLOWER_PORT = 9443, 9444, 9092


def add_commands(commands: Commands) -> None:
    """Add `init`, `add-site`, `accept`, `revoke` and `rotate`."""
    init = commands.add_parser(
        "init", help="found a consortium: its authority, the coordinator's certificate, a folder"
    )
    init.add_argument("name", metavar="NAME", help="of the consortium, as its sites will read it")
    init.add_argument(
        "--host",
        action="append",
        required=True,
        help="name or IP address under which sites reach this machine; repeat for several, the first goes into kits",
    )
    init.add_argument("--port", type=port, default=FLEET_PORT, help="public port for training (default %(default)s)")
    init.add_argument(
        "--service-port",
        type=port,
        default=SERVICE_PORT,
        help="public port for text space and enrolment (%(default)s)",
    )
    init.add_argument(
        "--flower-port", type=port, default=FLOWER_PORT, help="Flower's port, on loopback only (default %(default)s)"
    )
    init.add_argument(
        "--no-proxy", action="store_true", help="no nginx: all sites are on this machine, to try things out"
    )
    add_folder(init, "consortium")
    init.set_defaults(run=_init)

    add_site = commands.add_parser("add-site", help="make a site's kit, one archive to send to the hospital")
    add_site.add_argument("name", metavar="NAME", help="of the site: letters, digits, - and _")
    add_site.add_argument("--again", action="store_true", help="make a new kit for a site invited or revoked before")
    add_folder(add_site, "consortium")
    add_site.set_defaults(run=_add_site)

    accept = commands.add_parser("accept", help="accept the signing request that a site sent back")
    accept.add_argument("name", metavar="NAME", help="of the site")
    accept.add_argument("request", type=Path, metavar="FILE", help="NAME.csr, written by `dsm-site join` or `rotate`")
    accept.add_argument("--fingerprint", help="what the site reads over the telephone; refused where it differs")
    add_folder(accept, "consortium")
    accept.set_defaults(run=_accept)

    revoke = commands.add_parser("revoke", help="end a site's membership")
    revoke.add_argument("name", metavar="NAME", help="of the site")
    revoke.add_argument("--reason", default="no reason given", help="kept in the folder")
    add_folder(revoke, "consortium")
    revoke.set_defaults(run=_revoke)

    rotate = commands.add_parser("rotate", help="a new key and certificate for the coordinator")
    rotate.add_argument(
        "--authority", action="store_true", help="first step of another authority: new certificates for all sites"
    )
    rotate.add_argument("--host", action="append", help="further name or address that the new certificate states")
    add_folder(rotate, "consortium")
    rotate.set_defaults(run=_rotate)


def _init(options: argparse.Namespace) -> int:
    from server.consortium import Consortium
    from server.founding import create_consortium
    from strategies.deployment.errors import DeploymentError

    flower_port = options.port if options.no_proxy else options.flower_port
    ports = {options.port, options.service_port, flower_port}
    if len(ports) != (2 if options.no_proxy else 3):
        raise DeploymentError(f"--port, --service-port and --flower-port want different ports, found {sorted(ports)}")
    consortium = create_consortium(
        Consortium(
            folder=options.folder.resolve(),
            name=options.name,
            hosts=tuple(dict.fromkeys(options.host)),
            fleet_port=options.port,
            service_port=options.service_port,
            flower_port=flower_port,
            has_proxy=not options.no_proxy,
        )
    )
    print(
        f"consortium {consortium.name} in {consortium.folder}, for {', '.join(consortium.hosts)}\n"
        f"ca/ca.key signs for all: keep a copy of this folder where nobody else reads it\n"
        f"next: dsm-server add-site NAME, once a hospital"
    )
    return 0


def _add_site(options: argparse.Namespace) -> int:
    from importlib import metadata

    from server.consortium import load_consortium
    from server.provisioning import invite

    path = invite(load_consortium(options.folder), options.name, metadata.version("flwr"), options.again)
    print(f"{path}\nsend it to {options.name} over a channel that nobody else reads; the site runs `dsm-site join`")
    return 0


def _accept(options: argparse.Namespace) -> int:
    from server.consortium import load_consortium
    from server.provisioning import accept

    consortium = load_consortium(options.folder)
    path, found = accept(consortium, options.name, options.request, options.fingerprint)
    _record(consortium, "accepted", site=options.name, fingerprint=found, serial=consortium.site(options.name).serial)
    print(f"{path}\nfingerprint {found}")
    if options.fingerprint is None:
        print(f"ask {options.name} by telephone whether theirs is the same; if not: dsm-server revoke {options.name}")
    _settle(consortium)
    print(f"send this file to {options.name}, who runs `dsm-site join --certificate {path.name}`")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from server.consortium import load_consortium
    from server.provisioning import revoke

    consortium = load_consortium(options.folder)
    revoke(consortium, options.name, options.reason)
    _record(consortium, "revoked", site=options.name, reason=options.reason)
    print(f"{options.name} is revoked")
    _settle(consortium)
    return 0


def _rotate(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from server.consortium import load_consortium
    from server.founding import write_server_certificate
    from server.succession import exchange_authority, forget_former_authorities, is_exchanging

    consortium = load_consortium(options.folder)
    if options.authority:
        files = exchange_authority(consortium)
        _record(consortium, "authority exchanged", sites=", ".join(files))
        print(
            "\n".join(f"{path}" for path in files.values())
            + "\n1. `dsm-server stop` and `start`: both authorities are known from then on\n"
            "2. send each site its file; the site runs `dsm-site join --certificate FILE`\n"
            "3. when all have: `dsm-server rotate`, then `stop` and `start`; the former authority ends there, and at "
            "each site with its next `dsm-site start`"
        )
        return 0
    if is_exchanging(consortium):
        forget_former_authorities(consortium)
        _record(consortium, "former authority forgotten")
        print("the former authority is trusted no longer; a site that has not imported its new certificate is cut off")
    if options.host:
        consortium = replace(consortium, hosts=tuple(dict.fromkeys([*consortium.hosts, *options.host])))
    write_server_certificate(consortium, consortium.authority())
    consortium.save()
    print(f"{consortium.server_certificate}\nsites need nothing new; `dsm-server stop` and `start` take it into use")
    return 0


def _record(consortium: Consortium, event: str, **facts: str) -> None:
    from strategies.audit import AuditError, AuditLog
    from strategies.deployment.errors import DeploymentError

    try:
        AuditLog(consortium.audit).record(event, **facts)
    except AuditError as error:
        raise DeploymentError(f"done, and not in the audit log: {error}") from error


def _settle(consortium: Consortium) -> None:
    from server.control import ControlFault, settle_if_running

    try:
        if settle_if_running(consortium):
            print("the running SuperLink has been told")
    except ControlFault as fault:
        print(f"warning: a running SuperLink learns of this at its next start only: {fault}", file=sys.stderr)
