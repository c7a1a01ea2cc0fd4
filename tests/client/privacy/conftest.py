"""A tiny DSM with a loss per patch, for every test of private training."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dsm_core.classes import describe_class
from dsm_core.config import ModelConfig, TextConfig
from dsm_core.losses import dsm_loss
from dsm_core.model import DSM, QueryDropout, build_model
from dsm_core.text_space import TextSpace, build_text_space

NAMES = ("kidney", "liver", "liver tumor", "spleen")


@dataclass
class Task:
    """A model and patches; `losses` of some of the patches, the same for a patch in whatever company."""

    model: DSM
    text: TextSpace
    image: Tensor
    masks: Tensor
    keep: Tensor
    noise: Tensor

    def losses(self, patches: slice = slice(None)) -> Tensor:
        queries = self.model.query_set(NAMES, self.text)
        dropout = QueryDropout(self.keep[patches], self.noise[patches])
        output = self.model(self.image[patches], queries, dropout)
        annotated = torch.ones(len(self.image[patches]), len(NAMES), dtype=torch.bool)
        return dsm_loss(output, queries, self.masks[patches], annotated, self.text.vectors)[0]


@pytest.fixture
def make_task():
    """A function of the number of patches, their size and the model's sizes."""

    def make(patches: int, size: int = 32, config: ModelConfig | None = None) -> Task:
        text = build_text_space([describe_class(name) for name in NAMES], TextConfig(encoder="offline"))
        torch.manual_seed(0)
        model = build_model(config or ModelConfig(), text)
        model.class_rows.evidence[:] = 3.0
        with torch.no_grad():  # no gradient is zero only because a row begins at zero
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        image = torch.rand(patches, 1, size, size, size)
        masks = torch.rand(patches, len(NAMES), size, size, size) > 0.8
        keep = (torch.rand(patches, len(NAMES)) > 0.2).float()
        return Task(model, text, image, masks, keep, 0.01 * torch.randn(patches, len(NAMES), text.vectors.shape[1]))

    return make
