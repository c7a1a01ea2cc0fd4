"""What is one training step, whole and by part? DSM as a site trains it, and MONAI's networks on the same patches.

Axes: `B` patches, `K` classes, `X Y Z` voxels. Reading and augmenting data is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet, SwinUNETR
from torch import Tensor, nn

from client.trainer import StepSeed, Trainer
from dsm_core.classes import describe_class
from dsm_core.config import ModelConfig, TextConfig, TrainConfig
from dsm_core.data import Datalist, PatchBatch
from dsm_core.losses import organ_loss
from dsm_core.model import Features, build_model
from dsm_core.objectives import OrgansObjective
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace
from simulations.benchmarks.workers import Timing, clocked

CLASSES = ("gallbladder", "left kidney", "liver", "pancreas", "right kidney", "spleen", "stomach")
PARTS = ("encoder", "pixel decoder", "query decode", "loss", "optimiser")
T = TypeVar("T")


@cache
def text_space() -> TextSpace:
    return build_text_space([describe_class(name) for name in CLASSES], TextConfig(encoder="offline"))


def patches(size: int, batch: int, seed: int = 0) -> PatchBatch:
    """Noise with a brighter ball for each class, every class annotated: (B, 1, size, size, size)."""
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*3 * [np.arange(size)], indexing="ij"))
    image = draw.normal(0.3, 0.05, (batch, 1, size, size, size)).astype(np.float32)
    masks = np.zeros((batch, len(CLASSES), size, size, size), dtype=bool)
    for b in range(batch):
        for k in range(len(CLASSES)):
            centre, radius = draw.uniform(0, size, 3), draw.uniform(0.08, 0.25) * size
            masks[b, k] = ((grid - centre[:, None, None, None]) ** 2).sum(0) < radius**2
            image[b, 0] += 0.05 * (k + 1) * masks[b, k]
    annotated = torch.ones(batch, len(CLASSES), dtype=torch.bool)
    return PatchBatch(torch.from_numpy(image), torch.from_numpy(masks), annotated, tuple(sorted(CLASSES)))


@dataclass
class SamePatches:
    """Patches that are the same whenever they are drawn."""

    patches: PatchBatch
    datalist: Datalist = field(default_factory=lambda: Datalist("noise", Path(), {}, {}, (), {}))

    @property
    def names(self) -> tuple[str, ...]:
        return self.patches.names

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch:
        return self.patches

    def sample_case(self, index: int, generator: np.random.Generator, batch: int) -> PatchBatch:
        return self.patches


@dataclass
class DsmStep:
    """A DSM of some sizes and its trainer, fed with one batch of patches.

    Args:
        config: sizes of the model.
        size, batch: edge of a patch in voxels, and patches of a step.
    """

    config: ModelConfig
    size: int
    batch: int
    seed: int = 0
    trainer: Trainer = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        model = build_model(self.config, text_space())
        model.class_rows.evidence[:] = 3
        self.patches = patches(self.size, self.batch, self.seed)
        config = TrainConfig(batch=self.batch)
        self.trainer = Trainer(model, OrgansObjective(model, text_space(), SamePatches(self.patches), config), config)

    @property
    def parameters(self) -> int:
        """Of what the step trains."""
        return sum(p.numel() for p in self.trainer.model.parameters() if p.requires_grad)

    def whole(self) -> float:
        """One optimiser step as a site makes it; returns the loss before it."""
        return self.trainer.steps(1, 1e-3, StepSeed(self.seed, "site", 1))["loss"]

    def parts(self) -> dict[str, Timing]:
        """One step cut at the borders of its parts, each forward and backward."""
        spent = dict.fromkeys(PARTS, Timing(0.0, 0.0))

        def on(part: str, work: Callable[[], T]) -> T:
            result, timing = clocked(work)
            spent[part] = Timing(*(a + b for a, b in zip(spent[part], timing, strict=True)))
            return result

        model, patches = self.trainer.model.train(), self.patches
        queries = model.query_set(patches.names, text_space())
        pyramid = on("encoder", lambda: model.encoder(patches.image))
        pyramid_cut = [_cut(level) for level in pyramid]
        maps = on("pixel decoder", lambda: model.pixel_decoder(pyramid_cut))
        maps_cut = [_cut(level) for level in maps]
        output = on("query decode", lambda: model.find_organs(Features(*maps_cut), queries))
        cut = replace(
            output,
            mask_logits=_cut(output.mask_logits),
            presence_logits=_cut(output.presence_logits),
            grouping_logits=tuple(map(_cut, output.grouping_logits)),
            text_vectors=_cut(output.text_vectors),
        )
        self.trainer.optimizer.zero_grad(set_to_none=True)

        def loss() -> None:
            value, _ = organ_loss(cut, queries, patches.masks, patches.annotated, text_space().vectors)
            value.mean().backward()

        def update() -> None:
            nn.utils.clip_grad_norm_(model.parameters(), self.trainer.config.clip_norm)
            self.trainer.optimizer.step()

        on("loss", loss)
        on("query decode", lambda: _back(_tensors(output), _tensors(cut)))
        on("pixel decoder", lambda: _back(maps, maps_cut))
        on("encoder", lambda: _back(pyramid, pyramid_cut))
        on("optimiser", update)
        return spent


def _cut(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _tensors(output: Any) -> list[Tensor]:
    return [output.mask_logits, output.presence_logits, *output.grouping_logits, output.text_vectors]


def _back(ends: Any, leaves: Any) -> None:
    torch.autograd.backward(list(ends), [leaf.grad for leaf in leaves])


@dataclass
class MonaiStep:
    """A network of MONAI with its Dice and cross-entropy loss and AdamW, on the same patches, one channel a class."""

    network: nn.Module
    size: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.patches = patches(self.size, self.batch, self.seed)
        self.masks = self.patches.masks.float()
        self.loss = DiceCELoss(sigmoid=True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=True)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    def whole(self) -> float:
        """One optimiser step; returns the loss before it."""
        self.network.train()
        loss = self.loss(self.network(self.patches.image), self.masks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def segresnet(filters: int, blocks: tuple[int, ...]) -> SegResNet:
    """Myronenko 2018, arXiv:1810.11654, as MONAI has it."""
    return SegResNet(3, filters, 1, len(CLASSES), blocks_down=blocks)


def swin_unetr(feature_size: int) -> SwinUNETR:
    """Hatamizadeh et al. 2022, arXiv:2201.01266, as MONAI has it."""
    return SwinUNETR(1, len(CLASSES), feature_size=feature_size, spatial_dims=3)
