"""Who was among the patients? Asked of the updates that leave a site, by a server that knows the patients themselves.

The server names a learning rate so small that weights stand still: each round then shows the same patients' gradients
anew, in AdamW's first moment, which travels. Of each canary it wants to know one thing, whether a fair coin let it in,
and it may know all the rest, who else was drawn too: the promise to a patient holds whatever is known of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import sqrtm

from client.privacy.gradients import PatientGradients
from client.trainer import Arrays, Trainer
from dsm_core.config import PrivacyConfig
from simulations.privacy_audit.gaussian import SampledGaussian
from simulations.privacy_audit.planted import PlantedSite, plant
from simulations.privacy_audit.rounds import AuditedSite, Schedule
from strategies.averaging import MOMENT_KINDS, moment_key

CANARIES = 7  # of a run
PATIENTS = CANARIES + 1  # one more who is always there, so that a site never trains on nobody
STILL = 1e-12  # a learning rate: no weight moves further than about this in a step
SCHEDULE = Schedule(rounds=2, local_steps=1, rate=STILL, expected=4)
_NOTHING = 1e-3  # of a step: rounding, no patient's part


@dataclass(frozen=True)
class Trials:
    """Canaries of many runs, one after the other.

    Attributes:
        evidence: (M,) above 0 says that the canary was there. included: (M,) bool, whether it was.
    """

    evidence: np.ndarray
    included: np.ndarray


def attack_updates(
    privacy: PrivacyConfig, claim: SampledGaussian, runs: int, seed: int, tick: Callable[[int], object]
) -> Trials:
    """So many runs of `CANARIES` each under `privacy`, every canary guessed.

    Args:
        claim: what the site promises, of noise 0 without privacy.
        tick: called after each run with 1.
    """
    generator = np.random.default_rng([seed, 1])
    planted = plant(PATIENTS, generator)
    site = AuditedSite(planted, privacy, seed)
    reader = UpdateReader(site.trainer, planted, privacy.clip_norm)
    coins = generator.random((runs, PATIENTS)) < 0.5
    coins[:, CANARIES:] = True
    evidence = np.zeros(coins.shape)
    for run, coin in enumerate(coins):
        planted.present[:] = coin
        left, drawn = [], []
        for arrays, _ in site.run(SCHEDULE, run):
            left.append(arrays)
            drawn.append(np.isin(np.arange(PATIENTS), planted.drawn) & coin)
            planted.drawn.clear()
        if claim.noise:
            evidence[run] = reader.ratios(left, np.array(drawn), claim)
        else:
            evidence[run] = reader.shares(left)
        tick(1)
    return Trials(evidence[:, :CANARIES].ravel(), coins[:, :CANARIES].ravel())


class UpdateReader:
    """Reads updates as sums of known gradients g_1 .. g_P, each clipped to 1.

    It looks along orthonormal axes, each as near to one patient's gradient as can be (Lowdin 1950,
    doi:10.1063/1.1747632), so that the noise that one patient is judged by is independent of any other's.
    """

    def __init__(self, trainer: Trainer, planted: PlantedSite, clip_norm: float) -> None:
        self._decay, self._clip_norm = float(trainer.optimizer.param_groups[0]["betas"][0]), clip_norm
        gradients = patient_gradients(trainer, planted)
        self._keys = tuple(gradients)
        rows = np.concatenate([gradients[key] for key in self._keys], 1).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        clipped = rows * np.minimum(1.0, clip_norm / norms) / clip_norm
        self.places = np.real(sqrtm(clipped @ clipped.T))  # (P, P): g_i along axis j
        self._axes = np.linalg.solve(self.places, clipped)

    def steps(self, updates: Sequence[Arrays]) -> np.ndarray:
        """(rounds, P): the gradient that each round's step was given, along the axes, in units of the clipping norm."""
        moments = [
            np.concatenate([arrays[moment_key(key, MOMENT_KINDS[0])].ravel() for key in self._keys])
            for arrays in updates
        ]
        before = [np.zeros_like(moments[0]), *moments[:-1]]
        given = [(now - self._decay * then) / (1 - self._decay) for now, then in zip(moments, before, strict=True)]
        return np.stack(given).astype(np.float64) @ self._axes.T / self._clip_norm

    def ratios(self, updates: Sequence[Arrays], drawn: np.ndarray, claim: SampledGaussian) -> np.ndarray:
        """(P,) logarithm of how much likelier a patient's presence makes what was seen.

        Args:
            drawn: (rounds, P) bool; of patient i only the others' are used.
        """
        own = self.places.diagonal()
        seen = self.steps(updates) * SCHEDULE.expected
        others = drawn @ self.places - drawn * own
        shifts = (seen - others) / own
        return np.array(
            [
                SampledGaussian(claim.rate, claim.steps, claim.noise / scale).evidence(column).sum()
                for scale, column in zip(own, shifts.T, strict=True)
            ]
        )

    def shares(self, updates: Sequence[Arrays]) -> np.ndarray:
        """(P,) the largest part that a patient has in a step without noise, less what rounding explains."""
        parts = np.abs(np.linalg.solve(self.places.T, self.steps(updates).T)).T
        return (parts / parts.sum(1, keepdims=True)).max(0) - _NOTHING


def patient_gradients(trainer: Trainer, planted: PlantedSite) -> dict[str, np.ndarray]:
    """Each patient's gradient (P, numbers) by the tensor's key, unclipped, one by one, as if all were there."""
    keys = {parameter: key for key, parameter in trainer.model.state_dict(keep_vars=True).items()}
    trainer.model.train()
    rows: dict[str, list[np.ndarray]] = {}
    with PatientGradients(trainer.model) as watched:
        for patient in range(len(planted.images)):
            losses = trainer.losses(planted.patches([patient]), torch.Generator().manual_seed(0))[0]
            for parameter, found in watched.backward(losses).items():
                rows.setdefault(keys[parameter], []).append(found.flatten().numpy())
    return {key: np.stack(found) for key, found in rows.items()}
