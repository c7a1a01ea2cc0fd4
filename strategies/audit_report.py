"""What `audit verify` prints, and its exit code."""

from __future__ import annotations

import argparse
import json
import sys

from strategies.audit import AuditError, AuditLog, Head


def verify(options: argparse.Namespace) -> int:
    """0 where the log is intact, 1 where it was changed, 2 where it cannot be read.

    Args:
        options: `file`, `expect` and `json`.
    """
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
