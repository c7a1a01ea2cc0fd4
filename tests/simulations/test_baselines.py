"""Pooled training: patches of all sites, each with only its own site's classes known."""

import numpy as np
import torch

from dsm_core.data import PatchBatch
from simulations.baselines import PooledSampler


class OneSite:
    """A site whose patches hold its own number, every class present and only the first one annotated."""

    def __init__(self, number: float, names: tuple[str, ...]) -> None:
        self.number, self.names = number, names

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch:
        masks = torch.ones(batch, len(self.names), 2, 2, 2, dtype=torch.bool)
        annotated = torch.tensor([[i == 0 for i in range(len(self.names))]] * batch)
        return PatchBatch(torch.full((batch, 1, 2, 2, 2), self.number), masks, annotated, self.names)


def test_pooled_patch_knows_only_what_its_own_site_annotates() -> None:
    names = ("aorta", "liver", "spleen")
    pooled = PooledSampler([OneSite(1.0, ("liver", "spleen")), OneSite(2.0, ("aorta",))], names)
    batch = pooled.sample(np.random.default_rng(0), 40)
    assert batch.names == names
    first = batch.image[:, 0, 0, 0, 0] == 1
    assert 10 < first.sum() < 30
    for is_first, known, painted in zip(first, batch.annotated, batch.masks.flatten(2).all(2), strict=True):
        assert known.tolist() == ([False, True, False] if is_first else [True, False, False])
        assert painted.tolist() == ([False, True, True] if is_first else [True, False, False])
