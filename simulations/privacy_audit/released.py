"""Who was among the patients? Asked of the model that a run releases: those it has seen, it fits better.

Loss-based membership inference (Yeom et al. 2018, arXiv:1709.01604): how far a canary's loss fell from the start of the
run to its end. One run with many canaries, each let in by a fair coin; the attacker sees nothing but the two models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from client.trainer import Arrays
from dsm_core.config import PrivacyConfig
from simulations.privacy_audit.planted import plant
from simulations.privacy_audit.rounds import AuditedSite, Schedule
from simulations.privacy_audit.updates import Trials

_AT_ONCE = 16


def attack_released_model(
    privacy: PrivacyConfig, canaries: int, schedule: Schedule, seed: int, tick: Callable[[int], object]
) -> Trials:
    """One run under `privacy`, every canary guessed.

    Args:
        tick: called after each round with 1.
    """
    generator = np.random.default_rng([seed, 2])
    planted = plant(canaries, generator)
    planted.present[:] = coins = generator.random(canaries) < 0.5
    site = AuditedSite(planted, privacy, seed)
    before = _losses(site, site.start)
    released = site.start
    for arrays, _ in site.run(schedule, 0):
        released = arrays
        tick(1)
    fell = before - _losses(site, released)
    return Trials(fell - np.median(fell), coins)


def _losses(site: AuditedSite, arrays: Arrays) -> np.ndarray:
    """(P,) the loss of every patient, present or not, under these tensors."""
    site.trainer.load(arrays)
    site.trainer.model.eval()
    places = np.arange(len(site.planted.images))
    with torch.no_grad():
        found = [
            site.trainer.losses(site.planted.patches(chunk), torch.Generator().manual_seed(0))[0]
            for chunk in np.split(places, range(_AT_ONCE, len(places), _AT_ONCE))
        ]
    return torch.cat(found).numpy()
