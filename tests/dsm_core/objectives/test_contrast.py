"""A lesion of another contrast is what the scan of such a lesion would have given."""

import numpy as np
import torch

from dsm_core.model import VisualPrompt, space_to_depth
from dsm_core.model.haar import to_latent
from dsm_core.objectives.contrast import TURNED_SHARE, draw_contrast, with_contrast

LESION = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
LESION[..., 4:10, 4:10, 4:10] = True


def prompt_of(contrast: float) -> VisualPrompt:
    """An even organ, of which the prior expects just that, and a lesion of some contrast in it."""
    image = 0.5 + contrast * LESION
    expected = to_latent(torch.full((1, 1, 16, 16, 16), 0.5))
    departs = space_to_depth(image - 0.5)
    channels = torch.cat([to_latent(image) - expected, departs, departs, torch.ones_like(departs)], 1)
    rest = torch.zeros(1, 1, 8, 8, 8)
    return VisualPrompt(channels, rest, rest, torch.zeros(1, 2, 4), rest[..., :2, :2, :2], rest[..., :4, :4, :4])


def test_dark_lesion_becomes_the_bright_one_and_nothing_else_changes() -> None:
    turned = with_contrast(prompt_of(-0.2), LESION, -1.5)
    torch.testing.assert_close(turned.channels, prompt_of(0.3).channels)
    same = with_contrast(prompt_of(-0.2), torch.zeros_like(LESION), -1.5)
    assert torch.equal(same.channels, prompt_of(-0.2).channels)


def test_as_many_lesions_are_turned_as_it_says() -> None:
    draw = np.random.default_rng(0)
    factors = np.array([draw_contrast(draw) for _ in range(4000)])
    assert abs((factors < 0).mean() - TURNED_SHARE) < 0.03
    assert np.abs(factors).min() > 0.69
    assert np.abs(factors).max() < 1.21
