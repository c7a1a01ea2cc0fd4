"""A whole scan as the organ queries see it: every map lies on the scan's grid, and air is nothing."""

import pytest
import torch

from dsm_core.classes import describe_class
from dsm_core.config import DataConfig, ModelConfig, TextConfig
from dsm_core.model import DSM, QuerySet, build_model
from dsm_core.scan_reading import padded, read_organs
from dsm_core.text_building import build_text_space

SMALL = ModelConfig(widths=(8, 16, 16, 32), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)
TEXT = build_text_space([describe_class(name) for name in ("kidney", "liver", "spleen")], TextConfig())


@pytest.fixture
def asked() -> tuple[DSM, QuerySet]:
    torch.manual_seed(0)
    model = build_model(SMALL, TEXT).eval()
    model.class_rows.evidence[:] = torch.tensor([1.0, 1.0, 0.0])
    return model, model.query_set(["spleen", "liver"], TEXT)


@pytest.mark.parametrize("patch", [(32, 32, 32), (48, 32, 16)])
def test_maps_of_many_windows_lie_on_one_grid(asked: tuple[DSM, QuerySet], patch: tuple[int, ...]) -> None:
    model, queries = asked
    image = padded(torch.rand(1, 50, 40, 33), patch)
    assert image.shape == (1, 64, 48, 48)
    reading, organs, presence = read_organs(model, image, queries, DataConfig(patch=patch))
    assert reading.probabilities.shape == (1, 2, 64, 48, 48)
    assert reading.queries.shape == (1, 3, 16)
    assert reading.quarter.shape == (1, 16, 16, 12, 12)
    assert reading.eighth.shape == (1, 16, 8, 6, 6)
    assert torch.equal(organs[1], reading.probabilities[0, 1])  # the liver is asked for and context as well
    assert presence.shape == (2,)
    assert not any(map.isnan().any() for map in (reading.quarter, reading.eighth, organs))


def test_one_window_is_the_model_itself(asked: tuple[DSM, QuerySet]) -> None:
    model, queries = asked
    image = torch.rand(1, 32, 32, 32)
    reading, organs, presence = read_organs(model, image, queries, DataConfig(patch=(32, 32, 32)))
    with torch.no_grad():
        features = model.encode_image(image[None])
        output = model.find_organs(features, queries)
    torch.testing.assert_close(organs, output.mask_logits[0].sigmoid(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(presence, output.presence_logits[0].sigmoid())
    torch.testing.assert_close(reading.eighth, features.eighth, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reading.queries, output.organ_queries[:, [0, 1, 3]], atol=1e-5, rtol=1e-4)


def test_air_holds_nothing_and_is_not_looked_at(asked: tuple[DSM, QuerySet], monkeypatch: pytest.MonkeyPatch) -> None:
    model, queries = asked
    image = torch.zeros(1, 64, 32, 32)
    image[:, :8] = torch.rand(1, 8, 32, 32)
    seen: list[int] = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda windows: seen.append(len(windows)) or encode(windows))
    _, organs, _ = read_organs(model, image, queries, DataConfig(patch=(32, 32, 32)), overlap=0.0)
    assert seen == [1]
    assert organs[:, 32:].max() == 0
    assert organs[:, :32].max() > 0
