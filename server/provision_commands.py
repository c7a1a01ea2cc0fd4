"""The coordinator's commands for identities: who belongs to the consortium."""

from __future__ import annotations

from deployment.command_line import Commands


def add_commands(commands: Commands) -> None:
    """Add `init`, `add-site`, `accept`, `revoke` and `rotate`."""
