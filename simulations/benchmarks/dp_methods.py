"""Which ways are there to take one private step? Ours and Opacus', from forward pass to AdamW on the same patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.privacy.gradients import PatientGradients
from client.privacy.mechanism import GaussianSum
from client.privacy.noise import SecretStream
from client.trainer import Trainer
from dsm_core.classes import describe_class
from dsm_core.config import ModelConfig, TextConfig, TrainConfig
from dsm_core.data import PatchBatch
from dsm_core.model import build_model
from dsm_core.objectives import OrgansObjective, noise_patches
from dsm_core.text_building import build_text_space
from simulations.benchmarks.networks import SamePatches

CLASSES = ("kidney", "liver", "spleen", "stomach")
OPEN, OURS = "open", "private"
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Work:
    """What a step works on: `patients` with `patches` each, cubes of `size` voxels."""

    patients: int
    patches: int
    size: int
    model: ModelConfig

    def trainer(self) -> Trainer:
        text = build_text_space([describe_class(name) for name in CLASSES], TextConfig(encoder="offline"))
        torch.manual_seed(0)
        model = build_model(self.model, text)
        model.class_rows.evidence[:] = 1.0
        config = TrainConfig(clip_norm=CLIP_NORM)
        return Trainer(model.train(), OrgansObjective(model, text, SamePatches(self.batch()), config), config)

    def batch(self) -> PatchBatch:
        return noise_patches(CLASSES, self.patients * self.patches, (self.size,) * 3)


Step = Callable[[], None]


def moving(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the stage trains."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def open_step(work: Work, noise: float) -> tuple[Trainer, Step]:
    """No privacy; `noise` is not used."""
    trainer, batch = work.trainer(), work.batch()

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.losses(batch, _seeded())[0].mean().backward()
        trainer.step_with_gradients(CLIP_NORM)

    return trainer, step


def private_step(work: Work, noise: float) -> tuple[Trainer, Step]:
    """As `client.privacy.private_training` does it."""
    trainer, batch = work.trainer(), work.batch()
    total = GaussianSum(moving(trainer.model), CLIP_NORM, noise, SecretStream())

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        with PatientGradients(trainer.model) as watched:
            total.add(watched.backward(trainer.losses(batch, _seeded())[0], work.patches))
        total.release(work.patients)
        trainer.step_with_gradients()

    return trainer, step


def opacus_step(work: Work, noise: float, force_functorch: bool = False) -> tuple[Trainer, Step]:
    """Opacus' hooks and optimiser, a patch at a time; patches of a patient are averaged before clipping."""
    trainer, batch = work.trainer(), work.batch()
    sampled = GradSampleModule(trainer.model, loss_reduction="sum", force_functorch=force_functorch)
    optimizer = DPOptimizer(
        trainer.optimizer, noise_multiplier=noise, max_grad_norm=CLIP_NORM, expected_batch_size=work.patients
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        trainer.losses(batch, _seeded())[0].sum().backward()
        parameters: list[Any] = [*moving(sampled)]  # Opacus hangs `grad_sample` on them
        for parameter in parameters:
            if work.patches > 1:
                parameter.grad_sample = parameter.grad_sample.unflatten(0, (-1, work.patches)).mean(1)
        optimizer.pre_step()
        trainer.step_with_gradients()

    return trainer, step


class _Ghost(GradSampleModuleFastGradientClipping):
    """Opacus' Linear norms know two or three axes; ours have five, tokens of a volume."""

    @staticmethod
    def _linear(layer: nn.Linear, inputs: list[Tensor], gradients: Tensor) -> dict[nn.Parameter, Tensor]:
        stock = GradSampleModuleFastGradientClipping.NORM_SAMPLERS[nn.Linear]
        return stock(layer, [inputs[0].flatten(1, -2)], gradients.flatten(1, -2))

    NORM_SAMPLERS = {**GradSampleModuleFastGradientClipping.NORM_SAMPLERS, nn.Linear: _linear}  # noqa: RUF012


def ghost_step(work: Work, noise: float, use_ghost_clipping: bool = True) -> tuple[Trainer, Step]:
    """Opacus' ghost clipping: norms in one backward pass, the clipped sum in a second. Knows patches only."""
    if work.patches > 1:
        raise ValueError("ghost clipping cannot average a patient's patches before clipping")
    trainer, batch = work.trainer(), work.batch()
    ghost = _Ghost(trainer.model, loss_reduction="sum", max_grad_norm=CLIP_NORM, use_ghost_clipping=use_ghost_clipping)

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        losses = trainer.losses(batch, _seeded())[0]
        ghost.enable_hooks()
        losses.sum().backward(retain_graph=True)
        factors = ghost.get_clipping_coef()
        trainer.optimizer.zero_grad(set_to_none=True)
        ghost.disable_hooks()
        (factors * losses).sum().backward()
        for parameter in moving(trainer.model):
            assert parameter.grad is not None
            parameter.grad.add_(torch.randn_like(parameter), alpha=noise * CLIP_NORM).div_(work.patients)
        trainer.step_with_gradients()
        ghost.enable_hooks()

    return trainer, step


METHODS: dict[str, Callable[[Work, float], tuple[Trainer, Step]]] = {
    OPEN: open_step,
    OURS: private_step,
    "opacus hooks": opacus_step,
    "opacus functorch": lambda work, noise: opacus_step(work, noise, force_functorch=True),
    "opacus ghost": ghost_step,
    "opacus fast clipping": lambda work, noise: ghost_step(work, noise, use_ghost_clipping=False),
}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
