"""DSM as a whole: shapes, gradients, independence of samples, and queries that nobody trained."""

import copy

import pytest
import torch
from opacus import GradSampleModule

from dsm_core.classes import describe_class
from dsm_core.config import ModelConfig, TextConfig
from dsm_core.losses import dsm_loss
from dsm_core.model import DSM, QueryDropout, build_model
from dsm_core.model.layers import depth_to_space, space_to_depth
from dsm_core.model.queries import host_weights
from dsm_core.text_space import TextSpace, build_text_space

NAMES = ("kidney", "liver", "liver tumor", "spleen")
SMALL = ModelConfig(widths=(8, 16, 16, 32), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)


@pytest.fixture(scope="module")
def text() -> TextSpace:
    return build_text_space([describe_class(name) for name in NAMES], TextConfig(encoder="offline"))


@pytest.fixture
def model(text: TextSpace) -> DSM:
    torch.manual_seed(0)
    built = build_model(SMALL, text)
    built.class_rows.evidence[:] = 3
    return built


def test_space_to_depth_loses_nothing() -> None:
    x = torch.randn(2, 1, 4, 6, 8)
    assert torch.equal(depth_to_space(space_to_depth(x)[:, None]), x)


def test_masks_come_back_in_the_order_asked(model: DSM, text: TextSpace) -> None:
    image = torch.rand(1, 1, 32, 32, 32)
    model.eval()
    asked = ["liver tumor", "spleen", "liver"]
    together = model(image, model.query_set(asked, text)).mask_logits
    assert together.shape == (1, 3, 32, 32, 32)
    for i, name in enumerate(asked):
        alone = model(image, model.query_set([name], text)).mask_logits
        torch.testing.assert_close(together[:, i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_trained_organs_give_context_and_untrained_ones_do_not(model: DSM, text: TextSpace) -> None:
    model.class_rows.evidence[text.index("kidney")] = 0
    assert model.query_set(["liver tumor"], text).names == ("liver", "spleen", "liver tumor")


def test_phrase_without_a_row_is_a_query(model: DSM, text: TextSpace) -> None:
    queries = model.query_set(["metastasis in the spleen", "pancreas"], text)
    assert queries.row[-1] == -1
    assert queries.asked_names == ("metastasis in the spleen", "pancreas")
    assert torch.isfinite(model(torch.rand(1, 1, 16, 16, 16), queries).mask_logits).all()


def test_host_of_a_lesion_comes_from_its_text(text: TextSpace) -> None:
    organs = text.encode(["kidney", "liver", "spleen"])
    weights = host_weights(text.encode(["liver tumor", "radiotherapy target"]), organs)
    assert weights[0].argmax() == 1
    assert weights[0, 1] > 0.9
    assert weights[1].argmax() == 3  # anywhere


def test_image_of_a_wrong_shape_is_named(model: DSM, text: TextSpace) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        model(torch.rand(1, 1, 30, 32, 32), model.query_set(["liver"], text))


def loss_of(model: DSM, text: TextSpace, image: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    queries = model.query_set(NAMES, text)
    keep = torch.ones(len(image), len(queries.names))
    dropout = QueryDropout(keep, torch.zeros(len(image), *queries.text.shape))
    annotated = torch.ones(len(image), len(NAMES), dtype=torch.bool)
    return dsm_loss(model(image, queries, dropout), queries, masks, annotated, text.vectors)[0]


def test_every_parameter_trains(model: DSM, text: TextSpace) -> None:
    torch.manual_seed(1)
    loss_of(model, text, torch.rand(2, 1, 32, 32, 32), torch.rand(2, 4, 32, 32, 32) > 0.6).mean().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_per_sample_gradients_equal_single_sample_autograd(model: DSM, text: TextSpace) -> None:
    torch.manual_seed(2)
    image, masks = torch.rand(2, 1, 16, 16, 16), torch.rand(2, 4, 16, 16, 16) > 0.6
    private = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    inner = private._module
    queries = inner.query_set(NAMES, text)
    dropout = QueryDropout(torch.ones(2, len(queries.names)), torch.zeros(2, *queries.text.shape))
    annotated = torch.ones(2, len(NAMES), dtype=torch.bool)
    output = private(image, queries, dropout)
    dsm_loss(output, queries, masks, annotated, text.vectors)[0].sum().backward()
    samples = {name: p.grad_sample for name, p in inner.named_parameters()}
    for i in range(2):
        model.zero_grad()
        loss_of(model, text, image[i : i + 1], masks[i : i + 1]).sum().backward()
        for name, parameter in model.named_parameters():
            error = (samples[name][i] - parameter.grad).norm() / (parameter.grad.norm() + 1e-6)
            assert error < 1e-3, f"{name}: {error}"
