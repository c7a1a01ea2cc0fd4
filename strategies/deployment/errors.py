"""The error that a command shows to its user: what was found, what was wanted, what to do; no traceback."""

from __future__ import annotations


class DeploymentError(RuntimeError):
    """A command cannot go on; `dsm-server` and `dsm-site` print the message and end with 1."""
