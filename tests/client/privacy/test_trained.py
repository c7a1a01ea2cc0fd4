"""What private training may change is a choice, and everything else stays as it came, bit for bit."""

from __future__ import annotations

import pytest
from torch import nn

from client.privacy.faults import PrivacyError
from client.privacy.trained import only_trained, trained_names
from dsm_core.config import ModelConfig


def test_choices_name_what_they_say(make_task):
    task = make_task(1, size=16, config=ModelConfig())
    model = task.model
    everything = set(trained_names(model, "everything"))
    queries, adapters = (set(trained_names(model, choice)) for choice in ("queries", "adapters"))
    assert everything == task.trained.keys()
    assert {"class_rows.residual.weight", "organ_head.mask.0.weight", "text_to_query.norm.bias"} <= queries
    assert not any(name.startswith(("encoder", "pixel_decoder", "grouping")) for name in queries)
    assert {"class_rows.residual.weight", "encoder.stages.0.0.norm.weight", "organ_head.mask.0.bias"} <= adapters
    assert "organ_head.mask.0.weight" not in adapters
    sizes = {name: parameter.numel() for name, parameter in task.trained.items()}
    assert sum(map(sizes.get, adapters)) < 0.01 * sum(sizes.values()) < sum(map(sizes.get, queries))


def test_the_rest_is_frozen_only_meanwhile(make_task):
    task = make_task(1, size=16)
    before = task.trained.keys()
    with only_trained(task.model, "queries") as names:
        assert task.trained.keys() == set(names)
    assert task.trained.keys() == before


def test_choice_that_finds_nothing_is_refused():
    with pytest.raises(PrivacyError, match=r"privacy\.trained=queries finds no tensor"):
        trained_names(nn.Sequential(nn.Linear(2, 2)), "queries")
