"""`audit verify`, the same at a site and at the coordinator: was the log changed, and where does it end?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from strategies.audit import AuditError, AuditLog, Head


def add_audit(commands: argparse._SubParsersAction, default: Path) -> None:
    """Add `audit` with its actions.

    Args:
        default: the log that is meant where none is named.
    """
    audit = commands.add_parser("audit", help="examine the audit log", description="Examine the audit log.")
    actions = audit.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser(
        "verify",
        help="every sign that the log was changed",
        description="Examine an audit log. Exit code 1 where it was changed, 2 where it cannot be read.",
    )
    verify.add_argument("file", type=Path, nargs="?", default=default, metavar="FILE", help=f"the log ({default})")
    verify.add_argument(
        "--expect",
        metavar="NUMBER:HASH",
        help="an end of this log noted elsewhere, such as in the other side's log; finds a log that was made anew",
    )
    verify.add_argument("--json", action="store_true", help="the findings as JSON")
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    try:
        verdict = AuditLog(options.file).verify(Head.parse(options.expect) if options.expect else None)
    except AuditError as error:
        print(f"audit verify: {error}", file=sys.stderr)
        return 2
    if options.json:
        findings = {"faults": verdict.faults, "notes": verdict.notes}
        print(json.dumps({"is_intact": verdict.is_intact, "head": f"{verdict.head}", **findings}, indent=1))
    else:
        state = "intact" if verdict.is_intact else f"CHANGED, {len(verdict.faults)} fault(s)"
        print(f"{options.file}: {state}", *(f"  fault: {fault}" for fault in verdict.faults), sep="\n")
        print(*(f"  note: {note}\n" for note in verdict.notes), sep="", end="")
        print(f"  ends with {verdict.head}")
    return 0 if verdict.is_intact else 1
