"""Do the private runs of a sweep fit into the ledgers that sites keep themselves? Asked before the first of them.

A simulated site gets a ledger in each run's folder, so runs over generated patients do not add up. A site with a ledger
in its data folder is a real one: there each run over the same patients is charged, on top of all that was spent before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from client.ledger import LEDGER_NAME, Charge, Ledger
from client.training import open_datalist
from dsm_core.config import Config
from dsm_core.data import site_folders
from dsm_core.stages import total_rounds
from simulations.site_sources import with_held_out
from simulations.sweep.plan import Point, SweepError, composed


def check_own_ledgers(points: Sequence[Point]) -> list[str]:
    """A line for each site with a ledger of its own, on what the private runs among these points will charge to it.

    Raises:
        SweepError: they would pass a site's ceiling together.
        LedgerFault: a ledger cannot be read. PrivacyError: a run cannot be private at a site.
    """
    private: dict[Path, list[Config]] = {}
    for point in points:
        if point.kind == "private":
            config = with_held_out(composed(point.words))
            for folder in _with_ledgers(config):
                private.setdefault(folder, []).append(config)
    faults: list[str] = []
    lines: list[str] = []
    for folder, configs in private.items():
        is_within, line = _compose(folder, configs)
        (lines if is_within else faults).append(line)
    if faults:
        advice = "ask for fewer private runs, or sweep over data for which no promise has to be kept"
        raise SweepError("; ".join([*faults, advice]))
    return lines


def _with_ledgers(config: Config) -> list[Path]:
    """The folders of a run whose sites keep a ledger there."""
    if config.sites_dir is None or not Path(config.sites_dir).is_dir():
        return []
    return [folder for folder in site_folders(Path(config.sites_dir)) if os.path.lexists(folder / LEDGER_NAME)]


def _compose(folder: Path, configs: Sequence[Config]) -> tuple[bool, str]:
    from client.privacy import PatientAccountant  # Opacus takes seconds to import

    accountant = PatientAccountant()
    history = Ledger(folder / LEDGER_NAME, open_datalist(folder, configs[0]).site).read()
    charges = [_charge(folder, config, history.delta) for config in configs]
    together = accountant.epsilon((*history.charges, *charges), history.delta)
    is_within = accountant.is_within((*history.charges, *charges), history.delta, history.epsilon)
    return is_within, (
        f"{folder.name} keeps a ledger of its own: {len(charges)} private runs on top of its {len(history.charges)} "
        f"charges make epsilon {together:.2f}, and its ceiling is {history.epsilon:g}"
    )


def _charge(folder: Path, config: Config, delta: float) -> Charge:
    """What one run charges to a site."""
    from client.privacy.patients import Patients
    from client.privacy.private_training import plan_run

    patients = Patients.of(open_datalist(folder, config), config.train.batch)
    steps = total_rounds(config) * config.train.local_steps
    return plan_run(config.privacy, patients, steps, delta).charge(steps)
