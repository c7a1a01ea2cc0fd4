"""What the federation is compared with: pooled samples keep their own site's labels, and the steps are as many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dsm_core.classes import describe_class
from dsm_core.config import Config, PriorConfig, TumorsConfig
from dsm_core.data import Case, Datalist, PatchBatch, join_patches
from simulations.baselines import PooledObjective, rounds_at


class OneSite:
    """A site whose patches hold its own number, every class present and only the first one annotated."""

    trained, batch = ("encoder.",), 4

    def __init__(self, number: float, names: tuple[str, ...]) -> None:
        self.number, self.names, self.changes = number, names, 0

    @property
    def rows(self) -> tuple[str, ...]:
        return self.names

    def sample(self, draw: np.random.Generator, batch: int) -> PatchBatch:
        masks = torch.ones(batch, len(self.names), 2, 2, 2, dtype=torch.bool)
        annotated = torch.tensor([[i == 0 for i in range(len(self.names))]] * batch)
        return PatchBatch(torch.full((batch, 1, 2, 2, 2), self.number), masks, annotated, self.names)

    join = staticmethod(join_patches)

    def model_changed(self) -> None:
        self.changes += 1


def test_pooled_patch_knows_only_what_its_own_site_annotates() -> None:
    names = ("aorta", "liver", "spleen")
    sites = [OneSite(1.0, ("liver", "spleen")), OneSite(2.0, ("aorta",))]
    pooled = PooledObjective(sites)  # type: ignore[arg-type]
    assert (pooled.rows, pooled.trained, pooled.batch) == (names, ("encoder.",), 4)
    batch = pooled.sample(np.random.default_rng(0), 40)
    assert batch.names == names
    first = batch.image[:, 0, 0, 0, 0] == 1
    assert 10 < first.sum() < 30
    for is_first, known, painted in zip(first, batch.annotated, batch.masks.flatten(2).all(2), strict=True):
        assert known.tolist() == ([False, True, False] if is_first else [True, False, False])
        assert painted.tolist() == ([False, True, True] if is_first else [True, False, False])


def test_every_site_hears_that_the_pooled_model_has_changed() -> None:
    sites = [OneSite(1.0, ("liver",)), OneSite(2.0, ("aorta",))]
    PooledObjective(sites).model_changed()  # type: ignore[arg-type]
    assert [site.changes for site in sites] == [1, 1]


def test_a_site_takes_part_in_the_rounds_of_the_stages_that_it_has_labelled_something_for() -> None:
    config = Config(rounds=5, prior=PriorConfig(rounds=3), tumors=TumorsConfig(rounds=2))

    def site(*names: str) -> Datalist:
        values = {name: i + 1 for i, name in enumerate(names)}
        classes = {name: describe_class(name) for name in names}
        return Datalist("a", Path(), values, classes, (Case("x", Path(), Path(), names),), {})

    assert rounds_at(config, site("liver", "liver tumor")) == 10
    assert rounds_at(config, site("liver")) == 8
    assert rounds_at(config, site("liver tumor")) == 5
