"""The coordinator's commands for a running consortium: start, stop, see, and make the fleet path public."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from strategies.deployment.command_line import Commands, add_folder

if TYPE_CHECKING:
    from server.consortium import Consortium
    from server.orders import Order
    from strategies.deployment.supervision import Supervisor

MODULE, RUN = "server.cli", "run"
TEND_S = 1.0
READY_TIMEOUT_S = 600.0


def add_commands(commands: Commands) -> None:
    """Add `start`, `stop`, `status` and `nginx`."""
    start = commands.add_parser(
        "start",
        help="start the coordinator's services and train",
        description="Starts what does not run yet, waits for the sites, trains, and stops what it started.",
    )
    start.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="of the run, as in `dsm-simulate --help`")
    start.add_argument("--sites", type=int, help="begin once so many are connected (default: all accepted ones)")
    start.add_argument("--wait-s", type=float, default=3600.0, help="longest wait for them (default %(default)s)")
    work = start.add_mutually_exclusive_group()
    work.add_argument("--resume", action="store_true", help="go on with the run that was stopped (several: name=NAME)")
    work.add_argument("--services", action="store_true", help="only the services, until `dsm-server stop`")
    start.add_argument("--submit", action="store_true", help="only the run: something else keeps the services running")
    start.add_argument("--no-proxy", action="store_true", help="another proxy stands in front, see `dsm-server nginx`")
    start.add_argument("--detach", action="store_true", help="go on in the background once the services are up")
    start.add_argument(
        "--print",
        dest="form",
        nargs="?",
        const="commands",
        choices=("commands", "systemd"),
        help="show what would run",
    )
    add_folder(start, "consortium")
    start.set_defaults(run=_start)

    stop = commands.add_parser("stop", help="end the run and every service")
    add_folder(stop, "consortium")
    stop.set_defaults(run=_stop)

    status = commands.add_parser("status", help="sites, services, certificates that end soon")
    status.add_argument("--json", action="store_true", help="the same as JSON")
    add_folder(status, "consortium")
    status.set_defaults(run=_status)

    nginx = commands.add_parser("nginx", help="print the configuration of a proxy that serves the fleet path only")
    add_folder(nginx, "consortium")
    nginx.set_defaults(run=_nginx)


def _start(options: argparse.Namespace) -> int:
    from server.consortium import load_consortium
    from server.orders import new_order, resumed_order
    from server.provisioning import expiry_warnings
    from server.services import coordinator_services, place_of
    from strategies.deployment.daemon import SUPERVISOR, Ended, endable, go_on_in_background, say
    from strategies.deployment.processes import running_pid
    from strategies.deployment.supervision import Supervisor
    from strategies.deployment.units import render

    consortium = load_consortium(options.folder)
    place = place_of(consortium)
    if options.form:
        programs = [service.program for service in coordinator_services(consortium, not options.no_proxy)]
        print(render(options.form, f"dsm-server {consortium.name}", place, programs))
        return 0
    for warning in expiry_warnings(consortium):
        print(f"warning: {warning}", file=sys.stderr)
    make_order = resumed_order if options.resume else new_order
    order = None if options.services else make_order(consortium, options.keys, options.sites, options.wait_s)
    has_services = options.submit or bool(order and running_pid(place, SUPERVISOR))
    if options.detach:
        words = [word for word in options.words if word != "--detach"]
        pid = go_on_in_background(place, MODULE, words, READY_TIMEOUT_S, RUN if has_services else SUPERVISOR)
        print(f"the coordinator runs as process {pid}; `dsm-server status` shows it, `dsm-server stop` ends it")
        return 0

    supervisor = None
    if not has_services:
        supervisor = Supervisor(place, coordinator_services(consortium, not options.no_proxy), say)
    try:
        with endable():
            _work(consortium, supervisor, order, say)
    except Ended as ended:
        say(f"ended by {ended}")
        return 0 if order is None else 1
    return 0


def _work(
    consortium: Consortium, supervisor: Supervisor | None, order: Order | None, say: Callable[[str], None]
) -> None:
    from server.bundle import app_bundle
    from server.control import settle_if_running
    from server.services import place_of
    from server.submission import run_to_the_end
    from strategies.deployment.daemon import SUPERVISOR, running_as, tell_ready

    place, tend = place_of(consortium), supervisor.tend if supervisor else lambda: None
    with ExitStack() as held:
        if supervisor:
            held.enter_context(running_as(place, SUPERVISOR))
            held.callback(supervisor.stop)
            supervisor.start()
        else:
            say("the services run already; only the run is started")
        settle_if_running(consortium)
        tell_ready()
        while order is None:
            tend()
            time.sleep(TEND_S)
        held.enter_context(running_as(place, RUN))
        folder = run_to_the_end(consortium, order, app_bundle(), tend, say)
        print(f"completed: {folder / 'checkpoints' / 'last'}", flush=True)


def _stop(options: argparse.Namespace) -> int:
    from server.consortium import load_consortium
    from server.services import NAMES, place_of
    from strategies.deployment.daemon import SUPERVISOR, stop_everything

    stopped = stop_everything(place_of(load_consortium(options.folder)), [RUN, SUPERVISOR], NAMES)
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


def _status(options: argparse.Namespace) -> int:
    from server.consortium import load_consortium
    from server.overview import overview

    found = overview(load_consortium(options.folder))
    print(json.dumps(found.to_dict(), indent=1) if options.json else found.to_text())
    return 0


def _nginx(options: argparse.Namespace) -> int:
    from server.consortium import load_consortium
    from server.nginx import proxy_configuration

    print(proxy_configuration(load_consortium(options.folder)), end="")
    return 0
