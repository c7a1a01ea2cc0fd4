"""The large model: its size, a step in every precision and with checkpointing on CPU, and what one costs on a GPU."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from dsm_core.classes import describe_class
from dsm_core.config import ConfigError, TextConfig
from dsm_core.config_words import compose_config
from dsm_core.model import DSM, QuerySet, build_model, scan_native
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace

BASE = compose_config(["model=base"]).model
SMALL = replace(BASE, widths=(8, 16, 16, 32), decoder_width=16, query_width=16, mask_width=8, prior_widths=(8, 16, 16))


def text_space() -> TextSpace:
    names = ("kidney", "kidney tumor", "liver", "spleen")
    return build_text_space([describe_class(name) for name in names], TextConfig(encoder="offline"))


def make(config, device="cpu") -> tuple[DSM, QuerySet]:
    text = text_space()
    torch.manual_seed(0)
    model = build_model(config, text)
    model.class_rows.evidence[:] = 2.0
    model.to(device).train()
    return model, model.query_set(["kidney", "liver", "spleen"], text)


def step(model: DSM, queries: QuerySet, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Masks of organs, and the gradients of the encoder for a loss that weighs every voxel of them differently."""
    output = model(image, queries)
    weights = torch.linspace(-1, 1, output.mask_logits.numel(), device=image.device).view_as(output.mask_logits)
    (output.mask_logits * weights).mean().backward()
    return output.mask_logits.detach(), {name: p.grad for name, p in model.encoder.named_parameters()}


def image_of(size: int, batch: int = 1, device: str = "cpu") -> torch.Tensor:
    return torch.rand(batch, 1, size, size, size, generator=torch.Generator().manual_seed(1)).to(device)


def test_base_is_mixed_checkpointed_and_of_some_twenty_million_numbers() -> None:
    assert (BASE.precision, BASE.checkpointing) == ("bfloat16", True)
    model, _ = make(BASE)
    assert 15e6 < sum(p.numel() for p in model.parameters()) < 30e6


def test_base_takes_a_step_at_a_reduced_patch() -> None:
    model, queries = make(BASE)
    masks, gradients = step(model, queries, image_of(32))
    assert masks.shape == (1, 3, 32, 32, 32)
    assert masks.dtype == torch.float32
    assert all(g is not None and torch.isfinite(g).all() and g.dtype == torch.float32 for g in gradients.values())
    assert sum(bool(g.any()) for g in gradients.values()) == len(gradients)


def test_checkpointing_changes_no_bit_of_the_masks_and_no_gradient() -> None:
    plain = replace(SMALL, precision="float32", checkpointing=False)
    found = {kept: step(*make(replace(plain, checkpointing=kept)), image_of(32)) for kept in (False, True)}
    assert torch.equal(found[False][0], found[True][0])
    for name, gradient in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], gradient, rtol=1e-5, atol=1e-9)


def test_checkpointing_keeps_less_for_the_way_back() -> None:
    def kept_bytes(checkpointing: bool) -> int:
        model, _ = make(replace(SMALL, precision="float32", checkpointing=checkpointing))
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.encoder(image_of(32))
        return sum(kept.values())

    assert kept_bytes(True) < 0.6 * kept_bytes(False)


def test_bfloat16_is_near_float32_and_the_scan_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, _ = step(*make(replace(SMALL, precision="float32", checkpointing=False)), image_of(32))
    dtypes, scan = set(), scan_native.scan

    def watched(*tensors):
        dtypes.update(t.dtype for t in tensors if isinstance(t, torch.Tensor))
        return scan(*tensors)

    monkeypatch.setattr(scan_native, "scan", watched)
    monkeypatch.setattr("dsm_core.model.scan_torch.scan", watched)
    mixed, _ = step(*make(replace(SMALL, precision="bfloat16", checkpointing=False)), image_of(32))
    assert dtypes == {torch.float32}
    assert not torch.equal(mixed, exact)
    assert (mixed - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("word", ["model.precision=bfloat16", "model.checkpointing=true"])
def test_private_training_wants_neither(word: str) -> None:
    with pytest.raises(ConfigError, match=r"wants model\.precision=float32 and model\.checkpointing=false"):
        compose_config(["privacy.mode=dp_sgd", word])


def test_unknown_precision_is_named() -> None:
    with pytest.raises(ConfigError, match="found 'float8'"):
        compose_config(["model.precision=float8"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_step_of_base_fits_a_gpu_and_says_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    model, queries = make(BASE, "cuda")
    image = image_of(96, batch=2, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(4):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step(model, queries, image)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    gigabytes = torch.cuda.max_memory_allocated() / 1e9
    with capsys.disabled():
        name = torch.cuda.get_device_name()
        print(f"\nbase, 2 patches of 96^3, {name}: {min(seconds):.2f} s a step, {gigabytes:.1f} GB at most")
    assert gigabytes < 24
