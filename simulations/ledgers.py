"""Whose budget does a private simulation spend, and how much? A ledger for each site in the run folder, or its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.ledger import LEDGER_NAME, Ledger
from client.ledger_commands import create_ledger
from client.ledger_lines import LedgerFault
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


def read_spending(sites: Mapping[str, Path], ledgers: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What every site's ledger says when a run has ended, for `run.json`; `fault` alone where it says nothing.

    Args:
        sites: site -> data folder. ledgers: as `open_ledgers` gave them.
    """
    from client.privacy import Spending  # Opacus takes seconds to import

    found: dict[str, dict[str, Any]] = {}
    for (site, data), path in zip(sites.items(), ledgers, strict=True):
        whose = "the site's own, every run" if path.parent == data else "of this run"
        try:
            found[site] = {**asdict(Spending.of(Ledger(path, site).read())), "ledger": whose}
        except LedgerFault:  # it names the file
            found[site] = {"fault": "its ledger cannot be read; `dsm-site ledger verify` says why", "ledger": whose}
    return found
