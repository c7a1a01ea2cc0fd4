"""Tumour queries: the text says where to look, the prompt what is odd, the class row only adds."""

import pytest
import torch

from dsm_core.model.lesions import LesionHead, LesionPath, TumorQueries, brightest_spot, lesion_reach
from dsm_core.model.prompt import PROMPT_CHANNELS, VisualPrompt

TEXT = torch.nn.functional.normalize(torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0)), dim=2)
LEFT, RIGHT = torch.eye(3)[:2]


def two_organs() -> VisualPrompt:
    """An organ in the low half of X, one in the high half, both with the same odd spot."""
    channels, organs = torch.zeros(1, PROMPT_CHANNELS, 16, 8, 8), torch.zeros(1, 2, 16, 8, 8)
    organs[:, 0, :6], organs[:, 1, 10:], channels[:, -8:] = 1, 1, 1
    for start in (2, 12):
        channels[:, 0, start : start + 2, 3:5, 3:5] = 2
    return VisualPrompt(
        channels, torch.rand(1, 4, 16, 8, 8), organs, torch.rand(1, 3, 8), torch.rand(1, 6, 4, 2, 2),
        torch.rand(1, 6, 8, 4, 4),
    )  # fmt: skip


@pytest.fixture
def queries() -> TumorQueries:
    torch.manual_seed(0)
    return TumorQueries(12, 8, 6, 4, 8, fusion=True)


def test_wrong_host_does_not_find_the_tumor(queries: TumorQueries) -> None:
    found = queries(two_organs(), TEXT, torch.zeros(1, 2, 8), torch.stack([LEFT, RIGHT])).mask_logits[0]
    # Away from its own host a logit is lower by log(1.01) - log(0.01).
    apart = found[:, 4:8].mean((1, 2, 3)) - found[:, 26:28].mean((1, 2, 3))
    assert apart[0] > 3
    assert apart[1] < -3


def test_where_organs_touch_a_lesion_stays_on_the_side_of_its_host(queries: TumorQueries) -> None:
    prompt = two_organs()
    prompt.organs[:, 0, :8], prompt.organs[:, 1, 8:] = 1, 1
    hosts = torch.stack([LEFT, LEFT + RIGHT])
    reach = queries(prompt, TEXT, torch.zeros(1, 2, 8), hosts).host[0, :, :, 0, 0]
    assert reach[0].tolist() == [1] * 16 + [0] * 16
    assert reach[1].tolist() == [1] * 32


def test_a_lesion_bulges_out_of_its_host_and_not_into_another_organ() -> None:
    host, neighbour = torch.zeros(2, 1, 1, 12, 3, 3)
    host[:, :, 4:7], neighbour[:, :, 8:] = 1, 0.75
    host[:, :, 8] = 0.5  # both lay claim to it
    assert lesion_reach(host, neighbour)[0, 0, :, 1, 1].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0.5, 0.125, 0.125, 0]


def test_class_that_nobody_trained_has_the_shared_appearance(queries: TumorQueries) -> None:
    same_host = torch.stack([LEFT, LEFT])
    found = queries(two_organs(), TEXT, torch.zeros(1, 2, 8), same_host).mask_logits
    assert torch.equal(found[:, 0], found[:, 1])
    rows = torch.zeros(1, 2, 8)
    rows[:, 1] = 1
    added = queries(two_organs(), TEXT, rows, same_host).mask_logits
    torch.testing.assert_close(added[:, 0], found[:, 0])
    assert not torch.allclose(added[:, 1], found[:, 1])


def test_anywhere_is_everywhere(queries: TumorQueries) -> None:
    answer = queries(two_organs(), TEXT, torch.zeros(1, 2, 8), torch.eye(3)[2:].expand(2, -1))
    assert answer.host.min() == 1


def test_fusion_starts_as_if_it_were_not_there() -> None:
    torch.manual_seed(0)
    path, prompt = LesionPath(4, 8, fusion=True), two_organs()
    fused = path(prompt.channels, prompt.hidden)
    assert torch.equal(fused, path(prompt.channels, 0 * prompt.hidden))
    path.fuse.weight.data += 0.1
    assert not torch.equal(fused, path(prompt.channels, prompt.hidden))


def test_voxel_of_a_block_has_its_own_weights() -> None:
    head = LesionHead(2, 1)
    head.shared.weight.data = torch.arange(8.0)
    logits = head(torch.zeros(1, 1, 2), torch.ones(1, 1, 1, 1, 1))
    assert logits.flatten().tolist() == [n - 2 for n in range(8)]


def test_crop_takes_the_same_box_from_every_map() -> None:
    prompt = two_organs()
    box = prompt.crop((8, 0, 4), (8, 8, 4))
    assert torch.equal(box.organs, prompt.organs[..., 8:, :, 4:])
    assert torch.equal(box.eighth, prompt.eighth[..., 2:, :, 1:])
    assert torch.equal(box.quarter, prompt.quarter[..., 4:, :, 2:])
    assert box.organ_queries is prompt.organ_queries


def test_spot_is_the_mean_of_the_best_cube() -> None:
    logits = torch.full((1, 1, 8, 8, 8), -20.0)
    logits[..., 2:6, 2:6, 2:5] = 20.0
    assert brightest_spot(logits).sigmoid().item() == pytest.approx(0.75, abs=1e-4)
    logits[...] = -20.0
    logits[..., 0, 0, 0] = 20.0
    assert brightest_spot(logits).sigmoid().item() == pytest.approx(1 / 64, abs=1e-4)


def test_before_training_the_voxels_of_a_block_are_alike() -> None:
    torch.manual_seed(0)
    logits = LesionHead(2, 3)(torch.zeros(1, 1, 2), torch.rand(1, 3, 2, 2, 2))
    blocks = logits.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).flatten(5)
    assert (blocks.amax(5) - blocks.amin(5)).max() < 1e-6
    assert logits.std() > 0.01
