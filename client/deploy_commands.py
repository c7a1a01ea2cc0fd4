"""The site's commands for taking part: start, stop, and see."""

from __future__ import annotations

import argparse
import json
import sys
import time

from strategies.deployment.command_line import Commands, add_folder

MODULE = "client.cli"
READY_TIMEOUT_S = 600.0
TEND_S = 1.0


def add_commands(commands: Commands) -> None:
    """Add `start`, `stop` and `status`."""
    start = commands.add_parser(
        "start",
        help="take part in the consortium's runs, until `stop`",
        description="Checks site.yaml and the coordinator's certificate, then keeps Flower's processes running.",
    )
    start.add_argument("--detach", action="store_true", help="go on in the background once the site is connected")
    start.add_argument(
        "--print", dest="form", nargs="?", const="commands", choices=("commands", "systemd"), help="show what would run"
    )
    add_folder(start, "site")
    start.set_defaults(run=_start)

    stop = commands.add_parser("stop", help="take part no longer, for now")
    add_folder(stop, "site")
    stop.set_defaults(run=_stop)

    status = commands.add_parser("status", help="membership, settings, processes, a certificate that ends soon")
    status.add_argument("--json", action="store_true", help="the same as JSON")
    add_folder(status, "site")
    status.set_defaults(run=_status)


def _start(options: argparse.Namespace) -> int:
    from client.membership import forget_former_authorities, load_site
    from client.overview import check_membership
    from client.services import place_of, site_services
    from client.site_file import read_site_file
    from strategies.deployment.daemon import (
        SUPERVISOR,
        Ended,
        endable,
        go_on_in_background,
        running_as,
        say,
        tell_ready,
    )
    from strategies.deployment.handshake import check_coordinator
    from strategies.deployment.supervision import Supervisor
    from strategies.deployment.units import render

    site = load_site(options.folder)
    settings, place = read_site_file(site.settings), place_of(site)
    if options.form:
        programs = [service.program for service in site_services(site, settings)]
        print(render(options.form, f"dsm-site {site.name}", place, programs))
        return 0
    if warning := check_membership(site):
        print(f"warning: {warning}", file=sys.stderr)
    check_coordinator(site.fleet, site.ca_certificate)
    if forget_former_authorities(site):
        print("the coordinator's certificate is of the new authority; the former one is trusted no longer")
    if options.detach:
        pid = go_on_in_background(place, MODULE, [w for w in options.words if w != "--detach"], READY_TIMEOUT_S)
        print(f"{site.name} is connected, process {pid}; `dsm-site status` shows it, `dsm-site stop` ends it")
        return 0

    try:
        with endable(), running_as(place, SUPERVISOR):
            supervisor = Supervisor(place, site_services(site, settings), say)
            try:
                supervisor.start()
                say(f"{site.name} takes part in {site.consortium}")
                tell_ready()
                while True:
                    supervisor.tend()
                    time.sleep(TEND_S)
            finally:
                supervisor.stop()
    except Ended as ended:
        say(f"ended by {ended}")
    return 0


def _stop(options: argparse.Namespace) -> int:
    from client.membership import load_site
    from client.services import NAMES, place_of
    from strategies.deployment.daemon import SUPERVISOR, stop_everything

    stopped = stop_everything(place_of(load_site(options.folder)), [SUPERVISOR], NAMES)
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


def _status(options: argparse.Namespace) -> int:
    from client.membership import load_site
    from client.overview import overview

    found = overview(load_site(options.folder))
    print(json.dumps(found.to_dict(), indent=1) if options.json else found.to_text())
    return 1 if found.faults else 0
