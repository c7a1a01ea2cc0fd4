"""Which text space does this site hold: the coordinator's newest that it fetched, in one file."""

from __future__ import annotations

from pathlib import Path

from dsm_core.text_space import TextSpace, TextSpaceError

BANK = "text_space.safetensors"


def held_bank(folder: Path) -> TextSpace | None:
    """The text space in a cache folder; None where there is none.

    Raises:
        TextSpaceError: its content has not the hash that it states.
    """
    path = folder / BANK
    try:
        return TextSpace.load(path) if path.is_file() else None
    except TextSpaceError as error:
        raise TextSpaceError(f"{path}: {error}; delete the file and fetch it anew") from error


def keep_bank(folder: Path, space: TextSpace) -> None:
    """Put a text space in the place of the one held; a crash leaves one of the two whole."""
    folder.mkdir(parents=True, exist_ok=True)
    space.save(folder / BANK)
