"""`dsm-site`: what a hospital runs by hand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from client import (
    audit_commands,
    check_commands,
    consortium_commands,
    deploy_commands,
    doctor_commands,
    ledger_commands,
    membership_commands,
    predict_command,
)
from strategies.deployment.command_line import run_command

GROUPS = (
    check_commands,
    membership_commands,
    doctor_commands,
    consortium_commands,
    deploy_commands,
    predict_command,
    ledger_commands,
    audit_commands,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; 0 where all is well, 1 where it finds faults or fails, 2 for a mistyped command."""
    return run_command("dsm-site", "A site's own commands.", GROUPS, arguments)


if __name__ == "__main__":
    sys.exit(main())
