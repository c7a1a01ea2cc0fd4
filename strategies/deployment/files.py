"""How are keys, certificates and records put on disk? Whole or not at all, and readable by their owner only."""

from __future__ import annotations

import stat
from pathlib import Path

from dsm_core.durable import replace_file
from strategies.deployment.errors import DeploymentError

OWNER_ONLY, EVERYONE_READS = 0o600, 0o644


def make_private_folder(path: Path) -> Path:
    """The folder, made with its parents where it is missing; others can neither list nor enter it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_file(path: Path, content: bytes | str, mode: int = OWNER_ONLY) -> None:
    """Put this content in the file's place; a crash leaves the old content or the new one.

    Raises:
        DeploymentError: the disk is full or the folder cannot be written; the file is as it was.
    """
    try:
        replace_file(path, content.encode() if isinstance(content, str) else content, mode)
    except OSError as error:
        raise DeploymentError(f"{path} cannot be written: {error.strerror}; nothing was changed") from error


def read_file(path: Path, what: str, limit: int = 1 << 20) -> bytes:
    """Content of a small file.

    Args:
        what: said of the file in errors.

    Raises:
        DeploymentError: it is missing, cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise DeploymentError(f"{path} cannot be read ({error.strerror}); wanted {what}") from error
    if len(content) > limit:
        raise DeploymentError(f"{path} is larger than {limit} bytes; wanted {what}")
    return content


def check_owner_only(path: Path) -> None:
    """Raise where others than the owner can read a private file.

    Raises:
        DeploymentError: the file's mode gives group or others any right.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise DeploymentError(f"{path} has mode {mode:04o}, so others may read it; `chmod 600 {path}`")
