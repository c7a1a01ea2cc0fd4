"""Can a patient's scan be seen in an update? Gradient inversion, the update of one patient against the scan.

Geiping et al. 2020, arXiv:2003.14053: the image whose gradient points where the update points, by sign-wise descent,
under a prior of small total variation. The attacker is given the labels, so that all that it finds is the scan. It
needs the derivative of a gradient, which the scan kernels do not have; here as a difference along one direction
(Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147), which is exact enough for a sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from client.trainer import Arrays, Trainer
from dsm_core.config import PrivacyConfig
from dsm_core.data import PatchBatch
from simulations.privacy_audit.planted import PlantedSite, plant
from simulations.privacy_audit.rounds import AuditedSite, Schedule
from simulations.privacy_audit.updates import STILL
from strategies.averaging import MOMENT_KINDS, moment_key

SCHEDULE = Schedule(rounds=1, local_steps=1, rate=STILL, expected=1)
_RATE, _SMOOTHNESS = 0.05, 1e-3  # of the descent in grey values; weight of the total variation
_REACH = 1e-2  # of the difference, in lengths of the parameters' space


@dataclass(frozen=True)
class Inversion:
    """What was recovered from one update.

    Attributes:
        truth, recovered: (X, Y, Z) in [0, 1].
        similarity: correlation of the two over all voxels; 1 is the scan up to brightness and contrast, 0 is nothing.
    """

    privacy: PrivacyConfig
    truth: np.ndarray
    recovered: np.ndarray

    @property
    def similarity(self) -> float:
        return float(np.corrcoef(self.truth.ravel(), self.recovered.ravel())[0, 1])


def invert_update(privacy: PrivacyConfig, iterations: int, seed: int, tick: Callable[[int], object]) -> Inversion:
    """Train one round on a single patient and look for the scan in what leaves.

    Args:
        tick: called after each iteration with 1.
    """
    generator = np.random.default_rng([seed, 3])
    planted = plant(1, generator)
    site = AuditedSite(planted, replace(privacy, patches_per_patient=1), seed)
    (arrays, _), *_ = site.run(SCHEDULE, 0)
    recovered = recover(site.trainer, arrays, planted, iterations, generator, tick)
    return Inversion(privacy, planted.images[0, 0].numpy(), recovered)


def recover(
    trainer: Trainer,
    update: Arrays,
    planted: PlantedSite,
    iterations: int,
    generator: np.random.Generator,
    tick: Callable[[int], object],
) -> np.ndarray:
    """The image (X, Y, Z) whose gradient is most like the update's; of `planted` only the labels are used."""
    named = {key: p for key, p in trainer.model.state_dict(keep_vars=True).items() if isinstance(p, nn.Parameter)}
    kept = {key: p for key, p in named.items() if moment_key(key, MOMENT_KINDS[0]) in update}
    parameters = list(kept.values())
    target = torch.cat([torch.from_numpy(update[moment_key(key, MOMENT_KINDS[0])]).flatten() for key in kept])
    target = target / target.norm()
    labels = planted.patches([0])
    start = generator.uniform(0.4, 0.6, labels.image.shape).astype(np.float32)
    image = torch.from_numpy(start).requires_grad_()
    descent = torch.optim.Adam([image], lr=_RATE)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(descent, iterations)

    def loss() -> Tensor:
        patches = PatchBatch(image, labels.masks, labels.annotated, labels.names)
        return trainer.losses(patches, torch.Generator().manual_seed(0))[0].sum()

    trainer.model.train()
    for _ in range(iterations):
        direction = _away_from(_flat_gradient(loss(), parameters), target)
        slope = _slope_along(loss, image, parameters, direction)
        smooth = torch.autograd.grad(_SMOOTHNESS * _total_variation(image), image)[0]
        image.grad = (slope + smooth).sign()
        descent.step()
        rates.step()
        with torch.no_grad():
            image.clamp_(0, 1)
        tick(1)
    return image.detach()[0, 0].numpy()


def _flat_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def _away_from(gradient: Tensor, target: Tensor) -> Tensor:
    """Derivative of 1 - cosine(gradient, target) in the gradient."""
    length = gradient.norm()
    unit = gradient / length
    return ((unit @ target) * unit - target) / length


def _slope_along(
    loss: Callable[[], Tensor], image: Tensor, parameters: list[nn.Parameter], direction: Tensor
) -> Tensor:
    """Derivative in the image of the loss gradient's part along `direction`, by a central difference."""
    length = direction.norm()
    parts = (direction * (_REACH / length)).split([p.numel() for p in parameters])
    moves = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
    before = [p.detach().clone() for p in parameters]
    slopes = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for p, here, move in zip(parameters, before, moves, strict=True):
                p.copy_(here + sign * move)
        slopes.append(torch.autograd.grad(loss(), image)[0])
    with torch.no_grad():
        for p, here in zip(parameters, before, strict=True):
            p.copy_(here)
    return (slopes[0] - slopes[1]) * (length / (2 * _REACH))


def _total_variation(image: Tensor) -> Tensor:
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in (-3, -2, -1)]).sum()
