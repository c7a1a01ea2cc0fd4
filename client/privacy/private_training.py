"""How does a site train a round so that no patient shows? DP-SGD with the patient as the unit, paid before it leaves.

    sigma     of the whole run, from (epsilon, delta), this site's number of patients and rounds x steps
    a step    Poisson-sample patients, average each one's patches, clip to C, add N(0, sigma^2 C^2), divide by the
              constant number of patients expected
    then      AdamW: its moments are functions of noised gradients only, so that they may travel too

Everything random comes from a secret key: who knew the run's seed would know who takes part and what was added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from client.ledger import Charge, Ledger
from client.privacy.accounting import PatientAccountant
from client.privacy.faults import PrivacyError
from client.privacy.gradients import PatientGradients
from client.privacy.mechanism import GaussianSum
from client.privacy.noise import SecretStream
from client.privacy.patients import Patients, sample_patches
from client.privacy.trained import only_trained
from client.trainer import Trainer
from dsm_core.config import PrivacyConfig
from dsm_core.objectives import SiteObjective
from strategies.messages import TrainOrder

_PATCHES_AT_ONCE = 8  # of a backward pass; more patients than these are added up pass by pass
_SAME = 1e-3  # relative; what rounding may do between two ways to the same gradient
_known: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], list[nn.Parameter]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class PrivateRun:
    """What one site's run costs its patients.

    Attributes:
        delta: at which epsilon was asked.
    """

    sampling_rate: float
    noise_multiplier: float
    delta: float

    def charge(self, steps: int) -> Charge:
        return Charge(self.sampling_rate, self.noise_multiplier, steps)


def plan_run(privacy: PrivacyConfig, patients: Patients, steps: int, ledger_delta: float) -> PrivateRun:
    """The noise that keeps `steps` steps within the promise.

    Raises:
        PrivacyError: delta says nothing for so many patients, or no noise is enough.
    """
    delta = ledger_delta if privacy.delta is None else privacy.delta
    if delta >= 1 / len(patients):
        raise PrivacyError(
            f"privacy.delta={delta:g} is not below 1 / patients of this site: to reveal one of them whole would keep "
            f"that promise; set it well below"
        )
    accountant = PatientAccountant(privacy.accountant)
    noise = accountant.noise_for(privacy.epsilon, delta, patients.sampling_rate, steps)
    return PrivateRun(patients.sampling_rate, noise, delta)


def train_private_round(
    trainer: Trainer,
    objective: SiteObjective,
    order: TrainOrder,
    rate: float,
    expected: int,
    privacy: PrivacyConfig,
    ledger: Ledger,
    key: bytes | None = None,
) -> None:
    """Train a round in place; when this returns, the round is paid and the tensors may leave.

    Args:
        objective: the trainer's own, at one site.
        rate: learning rate of the round.
        expected: patients of a step on average.
        key: of all randomness; a secret one by default, given only in tests.

    Raises:
        PrivacyError: private training cannot keep its promise here.
        LedgerFault: the site's ceiling would be passed, or the ledger cannot be used; nothing may leave then.
    """
    patients = Patients.of(objective.datalist, expected)
    run = plan_run(privacy, patients, order.rounds * order.local_steps, ledger.read().delta)
    whole_run = order.rounds if order.round == 1 else 1  # refused at the beginning rather than half way
    ledger.check(run.charge(whole_run * order.local_steps))
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    with only_trained(trainer.model, privacy.trained):
        private_steps(trainer, objective, patients, order.local_steps, run.noise_multiplier, privacy, SecretStream(key))
    ledger.charge(run.charge(order.local_steps), round=order.round, rounds=order.rounds)


def private_steps(
    trainer: Trainer,
    objective: SiteObjective,
    patients: Patients,
    count: int,
    noise_multiplier: float,
    privacy: PrivacyConfig,
    stream: SecretStream,
) -> None:
    """`count` steps of DP-SGD, not accounted."""
    patches = privacy.patches_per_patient
    draw, generator = np.random.default_rng(stream.seed()), torch.Generator().manual_seed(stream.seed() >> 65)
    trainer.model.train()
    total = GaussianSum(_used(trainer, objective, privacy.trained), privacy.clip_norm, noise_multiplier, stream)
    at_once = 1 if objective.shares_draws else max(1, _PATCHES_AT_ONCE // patches)
    with PatientGradients(trainer.model) as watched:
        for _ in range(count):
            chosen = patients.draw(stream)
            for start in range(0, len(chosen), at_once):
                batch = sample_patches(patients, chosen[start : start + at_once], objective, draw, patches)
                total.add(watched.backward(trainer.losses(batch, generator)[0], patches))
            trainer.optimizer.zero_grad(set_to_none=True)
            total.release(patients.expected)
            trainer.step_with_gradients()


def _used(trainer: Trainer, objective: SiteObjective, trained: str) -> list[nn.Parameter]:
    """`used_parameters`, once for a model."""
    known = _known.setdefault(trainer.model, {})
    key = (trained, *objective.trained, *objective.rows)
    if key not in known:
        known[key] = used_parameters(trainer, objective.public_batch(2))
    return known[key]


def used_parameters(trainer: Trainer, batch: Any) -> list[nn.Parameter]:
    """The trained parameters that the loss of this site's classes uses, each proven to get exact patient gradients.

    Found without any patient's data: what is released must not depend on who is drawn.

    Raises:
        PrivacyError: patients' gradients do not add up to the batch's, so a layer goes past what is watched.
    """
    with PatientGradients(trainer.model) as watched:
        found = dict(watched.backward(trainer.losses(batch, torch.Generator().manual_seed(0))[0]))
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.losses(batch, torch.Generator().manual_seed(0))[0].sum().backward()
    wrong = []
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is None and parameter not in found:
            continue
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        summed = found[parameter].sum(0) if parameter in found else torch.zeros_like(parameter)
        if not (summed - wanted).norm() <= _SAME * wanted.norm() + 1e-6:
            wrong.append(name)
    trainer.optimizer.zero_grad(set_to_none=True)
    if wrong:
        raise PrivacyError(
            f"patients' gradients of {', '.join(wrong)} do not add up to the batch's; their layers are called "
            f"past their forward; call the layer itself"
        )
    return list(found)
