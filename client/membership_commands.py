"""The site's commands for its identity: joining a consortium, changing the key, leaving."""

from __future__ import annotations

import argparse
from pathlib import Path

from strategies.deployment.command_line import Commands, add_folder, port


def add_commands(commands: Commands) -> None:
    """Add `join`, `rotate` and `leave`."""
    join = commands.add_parser(
        "join",
        help="join a consortium with the kit that its coordinator sent",
        description="First with the kit: makes this site's key and a signing request for the coordinator. "
        "Then with --certificate and the file that comes back.",
    )
    join.add_argument("kit", nargs="?", type=Path, metavar="KIT", help="the archive from the coordinator")
    join.add_argument("--data", type=Path, metavar="DIR", help="folder with dataset.json, goes into site.yaml")
    join.add_argument("--port", type=port, default=9094, help="SuperNode's port on loopback (default %(default)s)")
    join.add_argument("--certificate", type=Path, metavar="FILE", help="the coordinator's answer to the request")
    add_folder(join, "site")
    join.set_defaults(run=_join)

    rotate = commands.add_parser("rotate", help="make a new key; the present one works until the new one is certified")
    add_folder(rotate, "site")
    rotate.set_defaults(run=_rotate)

    leave = commands.add_parser("leave", help="destroy this site's keys; data, settings and records stay")
    leave.add_argument("--yes", action="store_true", help="do not ask")
    add_folder(leave, "site")
    leave.set_defaults(run=_leave)


def _join(options: argparse.Namespace) -> int:
    from client.membership import import_certificate, join, key_fingerprint, load_site
    from client.site_file import write_site_file
    from strategies.deployment.errors import DeploymentError
    from strategies.deployment.kit import unpack_kit

    if (options.kit is None) == (options.certificate is None):
        raise DeploymentError("wanted the KIT from the coordinator, or --certificate FILE with their answer to it")
    if options.certificate:
        site = load_site(options.folder)
        certificate = import_certificate(site, options.certificate)
        print(f"{site.name} belongs to {site.consortium} until {certificate.not_valid_after_utc:%Y-%m-%d}")
        print(f"next: look through {site.settings}, then `dsm-site start`")
        return 0
    site = join(unpack_kit(options.kit), options.folder)
    if not site.settings.exists():
        write_site_file(site.settings, options.data, options.port)
    print(f"{site.request}\nfingerprint {key_fingerprint(site)}")
    print(f"send this file to the coordinator of {site.consortium}, and read them the fingerprint by telephone")
    return 0


def _rotate(options: argparse.Namespace) -> int:
    from client.membership import key_fingerprint, load_site, rotate

    site = load_site(options.folder)
    request = rotate(site)
    print(f"{request}\nfingerprint {key_fingerprint(site, request)}")
    print("send this file to the coordinator. From their `accept` until `dsm-site join --certificate` and a new start")
    print("of this site's processes, this site cannot connect")
    return 0


def _leave(options: argparse.Namespace) -> int:
    from client.membership import leave, load_site
    from client.services import NAMES, place_of
    from strategies.deployment.daemon import SUPERVISOR, stop_everything

    site = load_site(options.folder)
    if not options.yes and input(f"destroy the keys of {site.name} in {site.folder}? Type yes: ").strip() != "yes":
        print("nothing was changed")
        return 1
    stop_everything(place_of(site), [SUPERVISOR], NAMES)
    leave(site)
    print(f"the keys of {site.name} are gone; ask the coordinator for `dsm-server revoke {site.name} --reason left`")
    return 0
