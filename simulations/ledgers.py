"""Whose budget does a private simulation spend? A ledger for each site in the run folder, or its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from client.ledger import LEDGER_NAME
from client.ledger_commands import create_ledger
from dsm_core.config import PrivacyConfig


def open_ledgers(folder: Path, sites: Mapping[str, Path], privacy: PrivacyConfig) -> list[Path]:
    """The ledger of every site, in the order of `sites`; without privacy none, and each site looks for its own.

    A new ledger allows what the run asks for; one of an interrupted run goes on.

    Args:
        sites: site -> data folder.
    """
    ledgers: list[Path] = []
    if privacy.mode == "none":
        return ledgers
    for site, data in sites.items():
        path = data / LEDGER_NAME
        if not path.exists():
            path = folder / f"{site}.jsonl"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                create_ledger(path, data, privacy.epsilon, privacy.delta)
        ledgers.append(path)
    return ledgers
