"""`dsm-server`: what the coordinator runs by hand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from server import audit_commands, deploy_commands, provision_commands, service_commands, text_space_commands, watch
from strategies.deployment.command_line import run_command

GROUPS = (provision_commands, deploy_commands, service_commands, text_space_commands, watch, audit_commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; 0 where all is well, 1 where it is refused or fails, 2 for a mistyped command."""
    return run_command("dsm-server", "The coordinator of a consortium of hospitals.", GROUPS, arguments)


if __name__ == "__main__":
    sys.exit(main())
