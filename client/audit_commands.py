"""The site's command for its audit log: `dsm-site audit verify`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `audit`."""
    from strategies.audit_commands import add_audit

    add_audit(commands, Path("site/audit.jsonl"))
