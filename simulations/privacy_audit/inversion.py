"""Can a patient's scan be seen in an update? Gradient inversion, the update of one patient against the scan.

Geiping et al. 2020, arXiv:2003.14053: the image whose gradient points where the update points, found by descent
from several starts. The attacker is given the model and the labels, so that all that it finds is the scan, and takes
scans to be smooth. It looks at the encoder's first two stages only: with the gradient of what lies behind them, which
jumps wherever a voxel changes its nearest query, it finds less.

It needs the derivative of a gradient, which the kernels do not have. Here as a difference along one direction
(Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147), in float64 and so short that hardly ever a voxel changes its query on
the way: over 1e-2 that happens, and a third of the signs come out wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from client.trainer import Arrays
from dsm_core.config import PrivacyConfig
from dsm_core.data import PatchBatch
from dsm_core.objectives import OrgansObjective
from simulations.privacy_audit.planted import plant
from simulations.privacy_audit.rounds import MODEL, AuditedSite, Schedule
from simulations.privacy_audit.updates import STILL
from strategies.averaging import MOMENT_KINDS, moment_key

SCHEDULE = Schedule(rounds=1, local_steps=1, rate=STILL, expected=1)
# As wide at the surface as the model `base`: the wider, the more equations for as many voxels.
TARGET = replace(MODEL, name="inverted", widths=(48, 96, 16, 16))
MATCHED = ("encoder.stages.0.", "encoder.stages.1.")
_RATE = 0.03  # of the descent, in grey values
_SMOOTHNESS = 1.0  # voxels over which a step of the descent is smoothed
# Grey values of noise; from an even grey the norms would blow up its rounding, and nothing is found.
_START = (0.2, 0.8)
_REACH = 1e-6  # of the difference, in lengths of the parameters' space


@dataclass(frozen=True)
class Inversion:
    """What was recovered from one update.

    Attributes:
        truth, recovered: (X, Y, Z) in [0, 1].
        likeness: cosine of the recovered scan's gradient and the update's; all that the attacker sees of its success.
        similarity: correlation of the two over all voxels; 1 is the scan up to brightness and contrast, 0 is nothing.
    """

    privacy: PrivacyConfig
    truth: np.ndarray
    recovered: np.ndarray
    likeness: float

    @property
    def similarity(self) -> float:
        return float(np.corrcoef(self.truth.ravel(), self.recovered.ravel())[0, 1])


@dataclass(frozen=True)
class Descent:
    """How long an attacker looks: `first` iterations from each start, and on from the most promising one."""

    starts: int
    first: int
    further: int

    @property
    def ticks(self) -> int:
        return self.starts * self.first + self.further


def invert_update(privacy: PrivacyConfig, descent: Descent, seed: int, tick: Callable[[int], object]) -> Inversion:
    """Train one round on a single patient and look for the scan in what leaves.

    Args:
        tick: called after each iteration with 1.
    """
    generator = np.random.default_rng([seed, 3])
    planted = plant(1, generator)
    site = AuditedSite(planted, replace(privacy, patches_per_patient=1), seed, TARGET)
    (arrays, _), *_ = site.run(SCHEDULE, 0)
    attacker = Attacker(in_double(site.objective), arrays)
    starts = [torch.from_numpy(generator.uniform(*_START, planted.images.shape)) for _ in range(descent.starts)]
    found = [attacker.descend(start, descent.first, tick) for start in starts]
    recovered = attacker.descend(max(found, key=attacker.likeness), descent.further, tick)
    return Inversion(
        privacy, planted.images[0, 0].numpy(), recovered[0, 0].numpy(), likeness=attacker.likeness(recovered)
    )


class Attacker:
    """Knows the model, the first patient's labels and one update.

    Args:
        own: of the site's model, in float64; of its patches only the labels are used.
    """

    def __init__(self, own: OrgansObjective, update: Arrays) -> None:
        self._own, self._labels = own, own.patches.sample_case(0, np.random.default_rng(0), 1)
        named = {name: p for name, p in own.model.named_parameters() if name.startswith(MATCHED)}
        self._parameters = list(named.values())
        moments = [torch.from_numpy(update[moment_key(name, MOMENT_KINDS[0])]).double().flatten() for name in named]
        self._target = torch.cat(moments) / torch.cat(moments).norm()

    def descend(self, start: Tensor, iterations: int, tick: Callable[[int], object]) -> Tensor:
        """An image (1, 1, X, Y, Z) whose gradient is more like the update's than that of the one it starts from."""
        image = start.clone().requires_grad_()
        descent = torch.optim.Adam([image], lr=_RATE)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(descent, iterations)
        for _ in range(iterations):
            slope = slope_of_distance(lambda: self._loss(image), image, self._parameters, self._target)
            image.grad = torch.from_numpy(ndimage.gaussian_filter(slope.numpy(), _SMOOTHNESS, axes=(-3, -2, -1)))
            descent.step()
            rates.step()
            with torch.no_grad():
                image.clamp_(0, 1)
            tick(1)
        return image.detach()

    def likeness(self, image: Tensor) -> float:
        """Cosine of the image's gradient and the update's."""
        gradient = _row(torch.autograd.grad(self._loss(image), self._parameters))
        return float(gradient @ self._target / gradient.norm())

    def _loss(self, image: Tensor) -> Tensor:
        patches = PatchBatch(image, self._labels.masks, self._labels.annotated, self._labels.names)
        return self._own.losses(patches, torch.Generator().manual_seed(0))[0].sum()


def in_double(objective: OrgansObjective) -> OrgansObjective:
    """The objective on a copy of its model, both in float64."""
    model = copy.deepcopy(objective.model).double().train()
    return replace(objective, model=model, text=replace(objective.text, vectors=objective.text.vectors.double()))


def slope_of_distance(
    loss: Callable[[], Tensor], image: Tensor, parameters: list[nn.Parameter], target: Tensor
) -> Tensor:
    """Derivative in the image of 1 - cosine(gradient, target), by a difference along that distance's own slope.

    Args:
        target: unit vector, as long as all parameters in a row.
    """
    here, *found = torch.autograd.grad(loss(), [image, *parameters])
    direction = _away_from(_row(found), target)
    length = direction.norm()
    moves = (direction * (_REACH / length)).split([p.numel() for p in parameters])
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move.view_as(p))
    there = torch.autograd.grad(loss(), image)[0]
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    return (there - here) * (length / _REACH)


def _row(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def _away_from(gradient: Tensor, target: Tensor) -> Tensor:
    """Derivative of 1 - cosine(gradient, target) in the gradient."""
    length = gradient.norm()
    unit = gradient / length
    return ((unit @ target) * unit - target) / length
