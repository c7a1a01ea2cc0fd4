"""DSM as a whole: shapes, gradients, independence of samples, and queries that nobody trained."""

import pytest
import torch

from dsm_core.classes import describe_class
from dsm_core.config import ModelConfig, TextConfig
from dsm_core.model import DSM, build_model
from dsm_core.model.layers import depth_to_space, space_to_depth
from dsm_core.model.queries import host_weights
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace

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


def test_before_any_training_nothing_is_found(model: DSM, text: TextSpace) -> None:
    output = model(torch.rand(1, 1, 32, 32, 32), model.query_set(["liver tumor", "metastasis in the spleen"], text))
    assert output.mask_logits.sigmoid().max() < 0.5
    assert output.presence_logits.sigmoid().max() < 0.5


def test_no_trained_organ_still_gives_an_answer(model: DSM, text: TextSpace) -> None:
    model.class_rows.evidence[:] = 0
    queries = model.query_set(["liver tumor", "liver"], text)
    assert queries.host.tolist() == [[1.0]]
    output = model(torch.rand(1, 1, 16, 16, 16), queries)
    assert torch.isfinite(output.mask_logits).all()


def test_lesion_in_an_organ_that_nobody_trained_has_no_host(model: DSM, text: TextSpace) -> None:
    model.class_rows.evidence[text.index("liver")] = 0
    queries = model.query_set(["liver tumor", "liver"], text)
    assert queries.context == 2
    assert queries.host.shape == (1, 3)
