"""A run starts from a checkpoint's tensors, its class rows by name, or says why it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsm_core.checkpoint import save_checkpoint
from dsm_core.classes import describe_class
from dsm_core.config import Config, ConfigError, ModelConfig, TextConfig
from dsm_core.model import build_model
from dsm_core.text_building import build_text_space
from server.start import read_start, take_over

SMALL = ModelConfig(widths=(8, 8, 8, 8), mamba_blocks=(0, 0, 0, 1), decoder_width=8, query_width=8, mask_width=8)


def model_of(*names: str, seed: int = 0):
    text = build_text_space([describe_class(name) for name in names], TextConfig(encoder="offline"))
    torch.manual_seed(seed)
    model = build_model(SMALL, text)
    with torch.no_grad():
        model.class_rows.residual.weight.normal_()
    return model, text


@pytest.fixture
def public(tmp_path):
    model, text = model_of("liver", "kidney", seed=7)
    save_checkpoint(tmp_path / "public", model, Config(model=SMALL), text)
    return Config(model=SMALL, start=str(tmp_path / "public")), model


def test_rows_come_by_name_and_everything_else_as_it_is(public):
    config, source = public
    model, _ = model_of("kidney", "liver", "spleen")
    fresh = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    take_over(model, read_start(config))
    rows, theirs = model.class_rows.residual.weight, source.class_rows.residual.weight
    here, there = model.names.index, source.names.index
    for name in ("kidney", "liver"):
        assert torch.equal(rows[here(name)], theirs[there(name)])
    assert torch.equal(rows[here("spleen")], fresh["class_rows.residual.weight"][here("spleen")])
    for key, tensor in source.state_dict().items():
        if not key.startswith("class_rows."):
            assert torch.equal(model.state_dict()[key], tensor), key
    assert not torch.equal(fresh["void.weight"], model.state_dict()["void.weight"])


def test_without_start_nothing_is_read():
    assert read_start(Config()) is None


def test_other_sizes_and_a_folder_without_checkpoint_are_named(public, tmp_path):
    config, _ = public
    with pytest.raises(ConfigError, match=r"other sizes: decoder_width 8, wanted 16"):
        read_start(replace(config, model=replace(SMALL, decoder_width=16)))
    with pytest.raises(ConfigError, match=r"start=.*nowhere: no checkpoint folder"):
        read_start(replace(config, start=str(tmp_path / "nowhere")))
    assert read_start(replace(config, model=replace(SMALL, name="mine", scan_backend="torch"))) is not None


def test_text_vectors_of_another_width_are_named(public):
    config, _ = public
    checkpoint = read_start(config)
    model, _ = model_of("liver")
    model.to_text[2] = torch.nn.Linear(8, 5)
    with pytest.raises(ConfigError, match=r"to_text\.2\.weight, to_text\.2\.bias in another shape.*hashed words"):
        take_over(model, checkpoint)
