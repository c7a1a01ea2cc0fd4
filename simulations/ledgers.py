"""Whose budget does a private simulation spend? A ledger for each site in the run folder, or its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.ledger import LEDGER_NAME
from client.ledger_commands import create_ledger
from client.ledger_lines import read_history
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


def read_budgets(ledgers: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What the patients of each site have spent, by everything in its ledger: epsilon at delta, of which ceiling.

    Raises:
        LedgerFault: a damaged ledger.
    """
    from client.privacy import PatientAccountant  # Opacus takes seconds to import

    found = {}
    for site, path in ledgers.items():
        history = read_history(path.read_bytes())
        found[site] = {
            "spent": PatientAccountant().epsilon(history.charges, history.delta),
            "ceiling": history.epsilon,
            "delta": history.delta,
            "steps": sum(charge.steps for charge in history.charges),
            "ledger": "the site's own, every run" if path.name == LEDGER_NAME else "of this run",
        }
    return found
