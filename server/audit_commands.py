"""The coordinator's command for its audit log: `dsm-server audit verify`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `audit`."""
    from strategies.audit_commands import add_audit

    add_audit(commands, Path("consortium/audit.jsonl"))
