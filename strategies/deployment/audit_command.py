"""`audit verify`, the same words at a site and at the coordinator."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from strategies.deployment.command_line import Commands


def add_audit(commands: Commands, default: Path, verify: Callable[[argparse.Namespace], int]) -> None:
    """Add `audit` with its actions.

    Args:
        default: the log that is meant where none is named. verify: what `audit verify` does with `file`, `expect`
            and `json`.
    """
    audit = commands.add_parser("audit", help="examine the audit log", description="Examine the audit log.")
    actions = audit.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser(
        "verify",
        help="every sign that the log was changed",
        description="Examine an audit log. Exit code 1 where it was changed, 2 where it cannot be read.",
    )
    action.add_argument("file", type=Path, nargs="?", default=default, metavar="FILE", help=f"the log ({default})")
    action.add_argument(
        "--expect",
        metavar="NUMBER:HASH",
        help="an end of this log noted elsewhere, such as in the other side's log; finds a log that was made anew",
    )
    action.add_argument("--json", action="store_true", help="the findings as JSON")
    action.set_defaults(run=verify)
