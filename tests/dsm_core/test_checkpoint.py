"""A checkpoint comes back whole, and every way it can be damaged is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsm_core import checkpoint as module
from dsm_core.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from dsm_core.classes import describe_class
from dsm_core.config import Config, ModelConfig, TextConfig
from dsm_core.model import build_model
from dsm_core.text_building import build_text_space

SMALL = ModelConfig(
    name="small",
    widths=(8, 8, 8, 8),
    mamba_blocks=(0, 0, 0, 1),
    state_size=4,
    decoder_width=8,
    query_width=8,
    mask_width=4,
)


def space(*names):
    return build_text_space([describe_class(name) for name in names], TextConfig())


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    text = space("liver", "spleen", "liver tumor")
    return build_model(SMALL, text), Config(model=SMALL), text


@pytest.fixture
def saved(parts, tmp_path):
    model, config, text = parts
    save_checkpoint(tmp_path / "best", model, config, text, {"round": 3})
    return tmp_path / "best"


def test_round_trip_gives_the_same_answers(parts, saved):
    model, config, text = parts
    again = load_checkpoint(saved)
    assert again.text == text
    assert again.model_config == config.model
    assert again.data == config.data
    assert again.extra == {"round": 3}
    assert not again.model.training
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = model.eval()(image, model.query_set(["liver tumor"], text)).mask_logits
        found = again.model(image, again.model.query_set(["liver tumor"], again.text)).mask_logits
    assert torch.equal(expected, found)


def test_folder_holds_three_files_and_nothing_else(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "model.json",
        "model.safetensors",
        "text_space.safetensors",
    ]
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


def test_saving_again_replaces_and_a_failed_save_keeps_the_old(parts, saved, monkeypatch):
    model, config, text = parts
    save_checkpoint(saved, model, config, text, {"round": 4})
    assert load_checkpoint(saved).extra == {"round": 4}

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(saved, model, config, text, {"round": 5})
    assert load_checkpoint(saved).extra == {"round": 4}
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


def test_stopped_between_the_renames_the_older_checkpoint_is_found(saved):
    saved.rename(saved.with_name(".best.previous"))
    assert load_checkpoint(saved).extra == {"round": 3}


def test_missing_folder_and_missing_files_are_named(saved):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_checkpoint(saved.with_name("absent"))
    (saved / "text_space.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks text_space\.safetensors"):
        load_checkpoint(saved)


def test_text_space_of_another_run_is_refused(saved):
    space("liver", "spleen", "kidney tumor").save(saved / "text_space.safetensors")
    with pytest.raises(CheckpointError, match="trained with text space"):
        load_checkpoint(saved)


def test_weights_of_another_architecture_are_named_tensor_by_tensor(saved):
    weights = load_file(saved / "model.safetensors")
    weights["class_rows.bias.weight"] = torch.zeros(5, 1)
    weights["stranger"] = torch.zeros(2)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"2 tensors differ.*class_rows\.bias\.weight: expected \(3, 1\), found \(5, 1\)"
    ):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "text_space.safetensors", "model.json"])
def test_truncated_file_is_refused(saved, name):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
        load_checkpoint(saved)


@pytest.mark.parametrize("change", [{"format": 99}, {"model": {"layers": 3}}, {"data": {"patch": [30, 30, 30]}}])
def test_description_of_another_version_is_refused(saved, change):
    about = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(about | change))
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_checkpoint(saved)
