"""Stage 1, organs: encoder, organ queries and the rows of the organs, on patches with partial labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dsm_core.classes import ClassKind
from dsm_core.config import TrainConfig
from dsm_core.data import Datalist, PatchBatch, join_patches
from dsm_core.losses import organ_loss
from dsm_core.model import DSM, QueryDropout, QuerySet
from dsm_core.stages import MOVING, ORGANS
from dsm_core.text_space import TextSpace


class Patches(Protocol):
    """Draws patches of a site with the masks of some organs."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def datalist(self) -> Datalist: ...

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch: ...

    def sample_case(self, index: int, generator: np.random.Generator, batch: int) -> PatchBatch: ...


def organ_classes(datalist: Datalist) -> tuple[str, ...]:
    """Organs that at least one case of a site annotates."""
    return tuple(n for n in datalist.labelled_classes if datalist.classes[n].kind is ClassKind.ORGAN)


def noise_patches(names: tuple[str, ...], count: int, size: tuple[int, ...] = (32, 32, 32)) -> PatchBatch:
    """Patches of noise with every class annotated: nobody's data."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, *size, generator=generator)
    masks = torch.rand(count, len(names), *size, generator=generator) > 0.8
    return PatchBatch(image, masks, torch.ones(count, len(names), dtype=torch.bool), names)


@dataclass
class OrgansObjective:
    """Organ masks, object-aware grouping, presence and text."""

    model: DSM
    text: TextSpace
    patches: Patches
    config: TrainConfig
    trained: tuple[str, ...] = MOVING[ORGANS].prefixes
    shares_draws: bool = False
    _query_sets: dict[tuple[str, ...], QuerySet] = field(default_factory=dict, init=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        return self.patches.names

    @property
    def rows(self) -> tuple[str, ...]:
        return self.patches.names

    @property
    def datalist(self) -> Datalist:
        return self.patches.datalist

    @property
    def batch(self) -> int:
        return self.config.batch

    def sample(self, draw: np.random.Generator, batch: int) -> PatchBatch:
        return self.patches.sample(draw, batch)

    def sample_case(self, index: int, draw: np.random.Generator, batch: int) -> PatchBatch:
        return self.patches.sample_case(index, draw, batch)

    def join(self, parts: Sequence[PatchBatch]) -> PatchBatch:
        return join_patches(parts)

    def public_batch(self, batch: int) -> PatchBatch:
        return noise_patches(self.names, batch)

    def losses(self, batch: PatchBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        queries = self._queries(batch.names)
        dropout = self._dropout(queries, len(batch.image), generator)
        output = self.model(batch.image, queries, dropout)
        return organ_loss(output, queries, batch.masks, batch.annotated, self.text.vectors.to(batch.image.device))

    def model_changed(self) -> None:
        self._query_sets.clear()  # which organs are trained may have changed

    def _queries(self, names: tuple[str, ...]) -> QuerySet:
        if names not in self._query_sets:
            self._query_sets[names] = self.model.query_set(names, self.text)
        return self._query_sets[names]

    def _dropout(self, queries: QuerySet, batch: int, generator: torch.Generator) -> QueryDropout:
        """Class rows hidden at random and noise on the text, so that text alone is a working query."""
        count, width = queries.text.shape
        keep = torch.rand(batch, count, generator=generator) >= self.config.text_only
        noise = torch.randn(batch, count, width, generator=generator) * (self.config.text_noise / width**0.5)
        return QueryDropout(keep.to(queries.text), noise.to(queries.text))
