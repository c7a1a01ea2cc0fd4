"""Which program, typed how, made a run? Command, commit and versions, without a path of the machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = (
    "fed-dsm", "torch", "flwr", "monai", "opacus", "diffusers", "open_clip_torch", "grpcio", "hydra-core",
)  # fmt: skip


def portable_command(command: str | Sequence[str]) -> str:
    """The command as one line in which no word or `key=value` holds an absolute path.

    A path that shares no folder with the working directory keeps only its last part, as `.../NAME`.
    """
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    if words:
        words[0] = Path(words[0]).name if Path(words[0]).is_absolute() else words[0]
    return " ".join(_quoted(portable_word(word)) for word in words)


def source_commit(source: Path = Path(__file__)) -> tuple[str, bool]:
    """(short commit of the checkout that holds this program, has it uncommitted changes).

    The commit ends in `+dirty` when there are changes, and is `unknown` outside a git checkout.
    """
    try:
        _git(source, "ls-files", "--error-unmatch", source.name)
        commit = _git(source, "rev-parse", "--short", "HEAD")
        dirty = bool(_git(source, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", False
    return commit + "+dirty" * dirty, dirty


def installed_versions() -> dict[str, str]:
    """Version of every distribution that shapes a result; `absent` where it is not installed."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def _git(source: Path, *arguments: str) -> str:
    command = ["git", "-C", str(source.resolve().parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def portable_word(word: str) -> str:
    """A word, or a `key=value`, whose absolute path is made relative; other words as they are."""
    key, equals, value = word.rpartition("=")
    if not os.path.isabs(value):
        return word
    shares_folder = len(Path(os.path.commonpath([value, os.getcwd()])).parts) > 1
    return key + equals + (os.path.relpath(value) if shares_folder else f".../{Path(value).name}")


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./\[\]{}-]+", word) else shlex.quote(word)
