"""The site's command `dsm-site doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `doctor`."""
    from client.connection import add_connection

    doctor = commands.add_parser(
        "doctor",
        help="everything that could stop this site from taking part, with remedies",
        description="Look at this machine and at the way to the coordinator. Exit code 1 where a fault was found.",
    )
    doctor.add_argument("--data", type=Path, metavar="DIR", help="the site's data folder")
    doctor.add_argument("--device", default="cpu", help="what the site trains on: cpu (default), cuda or cuda:N")
    doctor.add_argument("--fleet", metavar="HOST:PORT", help="where the site's SuperNode connects")
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    add_connection(doctor)
    doctor.set_defaults(run=_doctor, timeout_s=10.0)


def _doctor(options: argparse.Namespace) -> int:
    from client.connection import tls_files
    from client.doctor import SiteSetup, examine
    from client.doctor_machine import MACHINE
    from client.doctor_network import NETWORK
    from strategies.tls import TlsError

    try:
        tls = tls_files(options)
    except TlsError as error:
        print(f"dsm-site doctor: {error}", file=sys.stderr)
        return 2
    setup = SiteSetup(
        data=options.data,
        state=options.state,
        device=options.device,
        service=options.coordinator,
        fleet=options.fleet,
        tls=tls,
        timeout_s=options.timeout_s,
    )
    report = examine(setup, [*MACHINE, *NETWORK])
    print(json.dumps(report.to_dict(), indent=1) if options.json else report.to_text())
    return 0 if report.is_able else 1
