"""A tiny DSM with a loss per sample in each stage, for every test of private training."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsm_core.classes import describe_class
from dsm_core.config import DataConfig, ModelConfig, TextConfig, TrainConfig
from dsm_core.data import Case, Datalist
from dsm_core.losses import organ_loss, tumor_loss
from dsm_core.model import DSM, QueryDropout, build_model, draw_corruption
from dsm_core.objectives import FrozenMaps, PriorObjective, TumorsObjective, freeze_others, noise_patches, trained_parts
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace

NAMES = ("kidney", "liver", "liver tumor", "spleen")
ORGANS, LESIONS = ("kidney", "liver", "spleen"), ("liver tumor",)


@dataclass
class Task:
    """A model in one stage and samples; `losses` of some of them, the same for a sample in whatever company."""

    stage: str
    model: DSM
    text: TextSpace
    batch: Any
    dropout: QueryDropout
    corruption: Any = None

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def losses(self, kept: slice = slice(None)) -> Tensor:
        batch, dropout = rows_of(self.batch, kept), rows_of(self.dropout, kept)
        if self.stage == "organs":
            queries = self.model.query_set(ORGANS, self.text)
            output = self.model(batch.image, queries, dropout)
            return organ_loss(output, queries, batch.masks, batch.annotated, self.text.vectors)[0]
        queries = self.model.query_set(LESIONS, self.text)
        if self.stage == "prior":
            words = queries.text[: queries.context]
            corruption = rows_of(self.corruption, kept)
            return self.model.prior(batch.image, batch.anatomy, words, batch.healthy, corruption)
        answer = self.model.find_tumors(batch.prompt, queries, dropout)
        nowhere = torch.zeros_like(batch.annotated)
        target = queries.row[queries.organs :]
        return tumor_loss(answer, batch.masks, batch.annotated, nowhere, self.text.vectors, target)[0]


def rows_of(held: Any, kept: slice) -> Any:
    """Some samples of a batch."""
    if isinstance(held, Tensor):
        return held[kept]
    if is_dataclass(held):
        return replace(held, **{part.name: rows_of(getattr(held, part.name), kept) for part in fields(held)})
    return held


@pytest.fixture
def make_task():
    """A function of the number of samples, the size of a patch, the model's sizes and the stage."""

    def make(patches: int, size: int = 32, config: ModelConfig | None = None, stage: str = "organs") -> Task:
        text = build_text_space([describe_class(name) for name in NAMES], TextConfig(encoder="offline"))
        torch.manual_seed(0)
        model = build_model(config or ModelConfig(), text)
        model.class_rows.evidence[:] = 3.0
        with torch.no_grad():  # no gradient is zero only because a row begins at zero
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        freeze_others(model, trained_parts(stage))
        data = DataConfig(crop=(16, 16, 16))
        infos = {name: describe_class(name) for name in LESIONS}
        cases = (Case("case", Path(), None, LESIONS),)
        datalist = Datalist("mercy", Path(), {"liver tumor": 1}, infos, cases, {"liver tumor": (1,)})
        maps = FrozenMaps(model, text, (), data)
        batch = {
            "organs": lambda: noise_patches(ORGANS, patches, (size,) * 3),
            "prior": lambda: PriorObjective(maps, datalist, TrainConfig()).public_batch(patches),
            "tumors": lambda: TumorsObjective(maps, datalist, TrainConfig()).public_batch(patches),
        }[stage]()
        asked = model.query_set(ORGANS if stage == "organs" else LESIONS, text)
        keep = (torch.rand(patches, len(asked.names)) > 0.2).float()
        keep[0] = 1
        noise = 0.01 * torch.randn(patches, len(asked.names), text.vectors.shape[1])
        corruption = draw_corruption(patches, (8, 8, 8), torch.Generator().manual_seed(0))
        return Task(stage, model, text, batch, QueryDropout(keep, noise), corruption)

    return make
