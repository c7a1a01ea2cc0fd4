"""In every stage exactly the tensors of that stage learn, and a sample's gradient does not depend on its company."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from dsm_core.config import ConfigError
from dsm_core.objectives import freeze_others, make_objective, trained_parts
from dsm_core.stages import STAGES

from .conftest import CONFIG


def rows_of(batch, kept: slice):
    """Some samples of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch[kept]
    if is_dataclass(batch):
        return replace(batch, **{part.name: rows_of(getattr(batch, part.name), kept) for part in fields(batch)})
    return batch


def open_stage(stage, maps, datalist):
    objective = make_objective(stage, maps, datalist, CONFIG)
    freeze_others(maps.model, objective.trained)
    return objective, objective.sample(np.random.default_rng(3), 3)


@pytest.mark.parametrize("stage", STAGES)
def test_every_tensor_of_a_stage_learns_and_no_other(stage, make_maps, datalist):
    maps = make_maps()
    objective, batch = open_stage(stage, maps, datalist)
    for seed in range(4):  # a class row that one step hides is seen by another
        objective.losses(batch, torch.Generator().manual_seed(seed))[0].mean().backward()
    moving = {name for name, p in maps.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moving == {name for name, _ in maps.model.named_parameters() if name.startswith(trained_parts(stage))}


def test_every_tensor_belongs_to_a_stage(make_maps):
    parts = tuple(part for stage in STAGES for part in trained_parts(stage))
    assert [name for name, _ in make_maps().model.named_parameters() if not name.startswith(parts)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_losses_of_a_sample_do_not_depend_on_its_company(stage, make_maps, datalist, monkeypatch):
    maps = make_maps()
    objective, batch = open_stage(stage, maps, datalist)
    together = objective.losses(batch, torch.Generator().manual_seed(0))[0]
    if stage == "prior":
        import dsm_core.objectives.prior as module

        drawn = module.draw_corruption(3, (8, 8, 8), torch.Generator().manual_seed(0))
        monkeypatch.setattr(module, "draw_corruption", lambda count, size, generator: rows_of(drawn, slice(0, count)))
    else:
        whole = objective._dropout(objective_queries(objective, batch), 3, torch.Generator().manual_seed(0))
        monkeypatch.setattr(
            type(objective), "_dropout", lambda self, queries, count, g: rows_of(whole, slice(0, count))
        )
    together = objective.losses(batch, torch.Generator().manual_seed(0))[0]
    alone = objective.losses(rows_of(batch, slice(0, 1)), torch.Generator().manual_seed(0))[0]
    assert alone[0].item() == pytest.approx(together[0].item(), rel=1e-4)


def objective_queries(objective, batch):
    names = batch.names if hasattr(objective, "patches") else (*batch.names, "kidney tumor")
    model = objective.model if hasattr(objective, "patches") else objective.maps.model
    text = objective.text if hasattr(objective, "patches") else objective.maps.text
    return model.query_set(names, text)


def test_unknown_stage_is_named(make_maps, datalist):
    with pytest.raises(ConfigError, match="organs, prior, tumors; found 'tumours'"):
        make_objective("tumours", make_maps(), datalist, CONFIG)


def test_site_without_lesions_or_without_organs_has_nothing_to_teach_there(make_maps, datalist):
    for stage, missing in (("organs", "liver"), ("tumors", "liver tumor")):
        cases = tuple(
            replace(case, annotated=tuple(n for n in case.annotated if n != missing)) for case in datalist.cases
        )
        assert make_objective(stage, make_maps(), replace(datalist, cases=cases), CONFIG) is None
