"""The site's command `dsm-site doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from client.connection import add_connection
from strategies.deployment.command_line import Commands


def add_commands(commands: Commands) -> None:
    """Add `doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="everything that could stop this site from taking part, with remedies",
        description="Look at this machine and at the way to the coordinator. Exit code 1 where a fault was found.",
    )
    doctor.add_argument("--data", type=Path, metavar="DIR", help="the data folder, for a site that has not joined yet")
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    add_connection(doctor, timeout_s=10.0)
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from client.doctor import examine
    from client.doctor_machine import MACHINE
    from client.doctor_membership import read_setup
    from client.doctor_network import NETWORK

    setup, membership = read_setup(options.folder, options.data, options.timeout_s)
    report = examine(setup, [*membership, *MACHINE, *NETWORK])
    print(json.dumps(report.to_dict(), indent=1) if options.json else report.to_text())
    return 0 if report.is_able else 1
