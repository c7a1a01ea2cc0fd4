"""Are the boxes off the tumour's middle, and are the baselines as good as they can be?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsm_core.config import Config
from dsm_core.data import Case, Volume
from simulations.benchmarks.sarcoma import Box, main, off_centre_boxes, score
from simulations.benchmarks.sarcoma_guesses import ellipsoid, window

SIZE = (40, 40, 40)


@pytest.fixture
def scan() -> tuple[Volume, torch.Tensor]:
    """A ball in the middle, a little brighter than what is around it."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij"))
    truth = (grid - 19.5).norm(dim=0) < 8
    image = 0.4 + 0.2 * truth
    return Volume(image[None], None, Case("a", None, None, ()), torch.eye(4).double(), (4.0,) * 3), truth  # type: ignore[arg-type]


def test_boxes_hold_the_tumor_off_their_middle(scan: tuple[Volume, torch.Tensor]) -> None:
    boxes = list(off_centre_boxes(*scan, np.random.default_rng(0)))
    assert len(boxes) == 4
    for box in boxes:
        assert box.truth.shape == (28, 28, 28)
        assert torch.equal(box.truth, box.image[0] > 0.5)
        assert box.truth.sum() >= 0.5 * scan[1].sum()
        centroid = box.truth.nonzero().double().mean(0)
        assert ((centroid - 13.5).abs() / 28).max() > 0.05


def test_ellipsoid_is_right_in_the_middle_and_wrong_beside_it(scan: tuple[Volume, torch.Tensor]) -> None:
    volume, truth = scan
    middle = ellipsoid([np.full(3, 16 / 40)])
    centred = score(middle, [Box(volume.image, truth)], Config())
    assert centred["dice"] > 0.9
    beside = score(middle, list(off_centre_boxes(volume, truth, np.random.default_rng(0))), Config())
    assert beside["dice"] < 0.75


def test_window_is_the_best_one(scan: tuple[Volume, torch.Tensor]) -> None:
    volume, truth = scan
    found = score(window([volume.image], [truth]), [Box(volume.image, truth)], Config())
    assert found["dice"] == 1


def test_missing_data_is_named(tmp_path, capsys) -> None:
    assert main(["--head-neck", str(tmp_path), "--sarcoma", str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err
