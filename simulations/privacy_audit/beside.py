"""What else does a private site's answer hold that an attacker could read? Asked of the site's own reply."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.budget import Budget
from client.ledger import Ledger
from client.training import SiteSession, train_round
from dsm_core.config import Config, PrivacyConfig
from dsm_core.objectives import FrozenMaps
from dsm_core.stages import ORGANS
from simulations.privacy_audit.planted import SITE, plant
from simulations.privacy_audit.rounds import AuditedSite, Schedule
from strategies import messages
from strategies.leaving import Private, UnlistedContent, leaving, places

_PATIENTS = 4
_SCHEDULE = Schedule(rounds=1, local_steps=1, rate=1e-3, expected=_PATIENTS)


def beside_the_noise(privacy: PrivacyConfig, seed: int) -> list[str]:
    """Places in the reply to one round that are not noised and accounted; an attack can use nothing else."""
    content = messages.pack_trained(*_reply(privacy, seed), privacy.mode != "none")
    found = {place: leaving(messages.TRAIN, place) for place in places(content)}
    return [place for place, item in found.items() if item is None or item.private is not Private.NOISED]


def refuses_metrics(privacy: PrivacyConfig, seed: int) -> bool:
    """True where a private reply to which a training loss was added is not sent."""
    arrays, metrics = _reply(privacy, seed)
    try:
        messages.pack_trained(arrays, {**metrics, messages.LOSS: 1.0}, is_private=True)
    except UnlistedContent:
        return True
    return False


def _reply(privacy: PrivacyConfig, seed: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    planted = plant(_PATIENTS, np.random.default_rng([seed, 4]))
    site = AuditedSite(planted, privacy, seed)
    site.trainer.config.batch = _SCHEDULE.expected
    config = Config(train=site.trainer.config, privacy=privacy)
    maps = FrozenMaps(site.trainer.model, site.text, volumes=(), data=config.data)  # this stage asks for none
    session = SiteSession(planted.datalist, maps, config, stage=ORGANS)
    session.trainer, session.objective = site.trainer, site.objective
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.jsonl"
        if privacy.mode != "none":
            Ledger(ledger, SITE).create(privacy.epsilon, privacy.delta or 0.0)
        result = train_round(session, site.start, _SCHEDULE.order(1, seed), Budget(ledger))
    return result.arrays, result.metrics
