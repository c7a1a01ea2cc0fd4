"""What the organ map says of a scan, with numbers worked out by hand."""

import pytest
import torch

from dsm_core.model.anatomy import close_holes, organ_statistics, read_anatomy
from dsm_core.model.layers import depth_to_space


def two_organs() -> tuple[torch.Tensor, torch.Tensor]:
    """A scan of two halves, one organ each: brightness 0.2 and 0.6, in turn 0.1 darker and brighter."""
    image = torch.full((1, 1, 8, 8, 8), 0.2)
    image[:, :, 4:] = 0.6
    stripes = torch.ones(8)
    stripes[::2] = -1
    image += 0.1 * stripes
    organs = torch.zeros(1, 2, 8, 8, 8)
    organs[:, 0, :4] = organs[:, 1, 4:] = 1
    return image, organs


def test_mean_and_spread_of_each_organ() -> None:
    mean, spread = organ_statistics(*two_organs())
    assert mean[0].tolist() == pytest.approx([0.2, 0.6], abs=1e-5)
    assert spread[0].tolist() == pytest.approx([0.1, 0.1], abs=1e-4)


def test_tumor_has_no_say_in_its_organs_mean() -> None:
    image, organs = two_organs()
    image[:, :, :2, :2, :2] = 1.0
    mean, spread = organ_statistics(image, organs)
    assert mean[0, 0].item() == pytest.approx(0.2, abs=0.01)
    assert spread[0, 0].item() == pytest.approx(0.1, abs=0.01)


def test_organ_that_is_not_there_has_a_mean_of_nothing() -> None:
    image, organs = two_organs()
    organs[:, 1] = 0
    mean, spread = organ_statistics(image, organs)
    assert (mean[0, 1].item(), spread[0, 1].item()) == (0, 1)


def test_level_and_deviation() -> None:
    image, organs = two_organs()
    anatomy = read_anatomy(image, organs)
    assert anatomy.level[0, 0, 0, 0, 0].item() == pytest.approx(2 * 0.2 - 1, abs=1e-4)
    assert anatomy.level[0, 0, 3, 0, 0].item() == pytest.approx(2 * 0.6 - 1, abs=1e-4)
    # One spread of 0.1 over 0.1 + 0.01, and a share of 1 / 1.05.
    assert anatomy.deviation.abs().mean().item() == pytest.approx(0.1 / 0.11 / 1.05, abs=1e-3)
    assert anatomy.outline.tolist() == torch.full_like(anatomy.outline, 0.5).tolist()


def test_without_organs_brightness_alone_is_left() -> None:
    image, organs = two_organs()
    anatomy = read_anatomy(image, 0 * organs)
    assert all(part.abs().max() == 0 for part in (anatomy.organs, anatomy.level))
    assert anatomy.deviation.amin().item() == pytest.approx((0.1 - 0.5) / 0.1, abs=1e-5)
    assert anatomy.deviation.amax().item() == pytest.approx((0.7 - 0.5) / 0.1, abs=1e-5)


def test_only_far_from_every_organ_brightness_is_held_against_fixed_numbers() -> None:
    image, organs = torch.full((1, 1, 32, 8, 8), 0.2), torch.zeros(1, 2, 32, 8, 8)
    organs[:, 0, :4], organs[:, 1, 20:24] = 1, 0.4  # a faint organ is none
    deviation = read_anatomy(image, organs).deviation[0].mean(0)[:, 0, 0]
    assert deviation[:4].abs().max() < 1e-4
    assert deviation[6:10].tolist() == pytest.approx([(0.2 - 0.5) / 0.1] * 4, abs=1e-4)


def test_beyond_its_organ_a_tumor_departs_from_it_as_inside() -> None:
    image, organs = torch.full((1, 1, 48, 8, 8), 0.6), torch.zeros(1, 2, 48, 8, 8)
    image += 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    organs[:, 0, :12], organs[:, 1, 40:] = 1, 1
    image[:, :, 40:] += 0.3
    image[:, :, 10:14] = 0.4  # half of it bulges out of the organ map
    anatomy = read_anatomy(image, organs)
    beyond, deviation = (depth_to_space(part[:, None])[0, 0, :, 0, 0] for part in (anatomy.beyond, anatomy.deviation))
    assert beyond[10:14].max() < -4
    assert deviation[12:14].abs().max() < 0.5
    assert beyond[24:28].abs().max() == 0  # none is near
    assert beyond[42:].abs().max() < 3  # each against its own


def test_hole_of_a_tumor_is_closed_and_the_organ_does_not_grow() -> None:
    organ = torch.zeros(1, 1, 9, 9, 9)
    organ[:, :, 2:7, 2:7, 2:7] = 1
    holed = organ.clone()
    holed[:, :, 4, 4, 4] = 0
    assert torch.equal(close_holes(holed), organ)


def test_surface_of_an_organ_and_a_tumor_in_it_do_not_widen_its_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))
    radius = (grid - 11.5).norm(dim=0)
    organ = (radius < 9).float()
    image = 0.7 - 0.4 * (radius > 8) + 0.02 * torch.randn(24, 24, 24, generator=generator)  # fat mixes into the surface
    image[(grid - 9.0).norm(dim=0) < 3] -= 0.12
    mean, spread = organ_statistics(image[None, None], organ[None, None])
    assert mean.item() == pytest.approx(0.7, abs=0.01)
    assert spread.item() == pytest.approx(0.02, abs=0.008)
