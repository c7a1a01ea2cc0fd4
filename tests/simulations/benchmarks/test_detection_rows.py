"""Measures of the zero-shot protocol on cases whose answer is known."""

import math

import pytest
import torch

from simulations.benchmarks.detection_rows import Tally, over_seeds

HOST = torch.zeros(12, 12, 12, dtype=torch.bool)
HOST[:, :, :6] = True
LESION = torch.zeros_like(HOST)
LESION[3:6, 3:6, 1:4] = True


def tally() -> Tally:
    return Tally((4.0, 4.0, 4.0), nsd_tolerance_mm=4.0)


def test_right_answer_is_right_by_every_measure() -> None:
    cases = tally()
    cases.add(LESION.float(), LESION, LESION, HOST, presence=0.9)
    cases.add(torch.zeros(12, 12, 12), torch.zeros_like(LESION), torch.zeros_like(LESION), HOST, presence=0.1)
    row = cases.row()
    assert [row[name] for name in ("auroc_host", "auroc_whole", "dice", "nsd", "sensitivity")] == [1] * 5
    assert [row[name] for name in ("fpr95_host", "fpr95_whole", "fp_ml")] == [0] * 3
    assert (row["auroc_presence"], row["cases"]) == (1, 1)


def test_lesion_marked_outside_its_host_counts_in_the_whole_volume_only() -> None:
    cases, score = tally(), LESION.float()
    score[:, :, 6:] = 2
    cases.add(score, score > 0, LESION, HOST, presence=None)
    row = cases.row()
    assert row["auroc_host"] == 1
    assert row["auroc_whole"] == pytest.approx((1728 - 27 - 864) / (1728 - 27))
    assert row["dice"] == pytest.approx(2 * 27 / (27 + 864 + 27))
    assert math.isnan(row["auroc_presence"])


def test_false_positives_are_those_of_cases_without_the_class() -> None:
    cases = tally()
    cases.add(LESION.float(), LESION, torch.zeros_like(LESION), HOST, presence=None)
    assert cases.row()["fp_ml"] == pytest.approx(27 * 64 / 1000)


def test_seeds_become_one_row_with_their_range() -> None:
    rows = [{"class": "a", "seed": seed, "dice": dice} for seed, dice in enumerate((0.2, 0.4, math.nan))]
    assert over_seeds([*rows, {"class": "b", "seed": 0, "dice": math.nan}], ["class"], ["dice"]) == [
        {"class": "a", "seeds": 3, "dice": pytest.approx(0.3), "dice_range": "0.200-0.400"},
        {"class": "b", "seeds": 1, "dice": pytest.approx(math.nan, nan_ok=True), "dice_range": "-"},
    ]
