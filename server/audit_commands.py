"""The coordinator's command for its audit log: `dsm-server audit verify`."""

from __future__ import annotations

import argparse
from pathlib import Path

from strategies.deployment.audit_command import add_audit
from strategies.deployment.command_line import Commands


def add_commands(commands: Commands) -> None:
    """Add `audit`."""
    add_audit(commands, Path("consortium/audit.jsonl"), _verify)


def _verify(options: argparse.Namespace) -> int:
    from strategies.audit_report import verify

    return verify(options)
