"""A turned crop is the crop of the turned scan, exactly, for every kind of map."""

import itertools

import numpy as np
import pytest
import torch

from dsm_core.model.haar import to_latent
from dsm_core.model.layers import space_to_depth
from dsm_core.model.symmetry import Symmetry, draw_symmetry

ALL = [
    Symmetry(order, mirrored)
    for order in itertools.permutations(range(3))
    for mirrored in itertools.product((False, True), repeat=3)
]
SCAN = torch.rand(2, 1, 8, 12, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", ALL, ids=str)
def test_wavelet_and_blocks_turn_as_the_scan_does(side: Symmetry) -> None:
    turned = side.turn_map(SCAN)
    torch.testing.assert_close(side.turn_wavelet(to_latent(SCAN)), to_latent(turned))
    assert torch.equal(side.turn_blocks(space_to_depth(SCAN)), space_to_depth(turned))


def test_axis_of_the_result_is_the_named_axis_mirrored() -> None:
    turned = Symmetry((2, 0, 1), (True, False, False)).turn_map(SCAN)
    assert turned.shape == (2, 1, 4, 8, 12)
    assert turned[0, 0, 0, 5, 7] == SCAN[0, 0, 5, 7, 3]


def test_all_sides_are_drawn_alike_often() -> None:
    draw = np.random.default_rng(0)
    drawn = [draw_symmetry(draw) for _ in range(4800)]
    counts = [drawn.count(side) for side in ALL]
    assert min(counts) > 60
    assert max(counts) < 145
