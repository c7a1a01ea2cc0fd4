"""What do the sites of one process remember between rounds? Kept beside the server's state, so that they go on too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import Context
from numpy.typing import NDArray

from client.memory import export_moments, import_moments
from client.whereabouts import SITE_DIR

_GROUP = "moments of "


def kept_moments(contexts: Iterable[Context]) -> dict[str, dict[str, NDArray]]:
    """The moments that each site keeps; nothing where they travel with the tensors."""
    found = {_group(context): export_moments(context) for context in contexts}
    return {group: moments for group, moments in found.items() if moments}


def restore_moments(contexts: Iterable[Context], kept: Mapping[str, Mapping[str, NDArray]]) -> None:
    """Give each site what `kept_moments` found there."""
    for context in contexts:
        import_moments(context, kept.get(_group(context), {}))


def _group(context: Context) -> str:
    return _GROUP + Path(str(context.node_config[SITE_DIR])).name
