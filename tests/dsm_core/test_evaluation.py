"""Scores worked out by hand on boxes, and the rows of the matrix."""

from __future__ import annotations

import math

import pytest
import torch

from dsm_core.evaluation import CaseScore, class_status, matrix_rows, score_case


def box(low, high, size=20):
    mask = torch.zeros(1, size, size, size, dtype=torch.bool)
    mask[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return mask


def test_half_overlapping_boxes_score_one_half():
    pred, truth = box((2, 2, 2), (10, 10, 10)), box((6, 2, 2), (14, 10, 10))
    score = score_case(pred, truth, (2.0, 2.0, 2.0), 1.0)
    assert float(score.dice[0]) == pytest.approx(0.5)
    assert 0 < float(score.nsd[0]) < 1
    assert math.isnan(score.false_positive_ml[0])


def test_surface_within_tolerance_is_right_and_spacing_counts():
    pred, truth = box((5, 5, 5), (12, 12, 12)), box((6, 5, 5), (13, 12, 12))
    assert float(score_case(pred, truth, (2.0, 1.0, 1.0), 2.0).nsd[0]) == 1
    assert float(score_case(pred, truth, (2.5, 1.0, 1.0), 2.0).nsd[0]) < 1
    moved = box((5, 6, 5), (12, 13, 12))
    assert float(score_case(box((5, 5, 5), (12, 12, 12)), moved, (2.5, 1.0, 1.0), 2.0).nsd[0]) == 1


def test_cropping_to_the_organ_does_not_change_the_surface_score():
    torch.manual_seed(0)
    pred, truth = box((3, 4, 5), (15, 16, 18)), box((2, 5, 6), (16, 15, 20))
    alone = score_case(pred[:, 1:, 2:, 3:], truth[:, 1:, 2:, 3:], (1.0, 1.5, 2.0), 1.6)
    assert torch.equal(alone.nsd, score_case(pred, truth, (1.0, 1.5, 2.0), 1.6).nsd)


def test_perfect_missed_absent_and_not_annotated():
    held = box((5, 5, 5), (10, 10, 10))
    empty = torch.zeros_like(held)
    pred = torch.cat([held, empty, held, empty, held])
    truth = torch.cat([held, held, empty, empty, empty])
    score = score_case(pred, truth, (2.0, 2.0, 2.0), 2.0, annotated=(True, True, True, True, False))
    nan = math.nan
    assert score.dice.tolist() == pytest.approx([1, 0, nan, nan, nan], nan_ok=True)
    assert score.nsd.tolist() == pytest.approx([1, 0, nan, nan, nan], nan_ok=True)
    assert score.false_positive_ml.tolist() == pytest.approx([nan, nan, 1.0, 0, nan], nan_ok=True)


def test_different_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        score_case(box((1, 1, 1), (3, 3, 3)), box((1, 1, 1), (3, 3, 3), size=21), (1, 1, 1), 1.0)


def test_status_of_a_class():
    everywhere = {"liver", "spleen", "liver tumor"}
    assert class_status("liver", {"liver"}, everywhere) == "local"
    assert class_status("spleen", {"liver"}, everywhere) == "foreign"
    assert class_status("kidney cyst", {"liver"}, everywhere) == "unseen"


def test_matrix_rows_are_means_over_the_cases_that_hold_the_class():
    nan = math.nan
    scores = [
        CaseScore(torch.tensor([0.8, nan, nan]), torch.tensor([0.6, nan, nan]), torch.tensor([nan, 2.0, nan])),
        CaseScore(torch.tensor([0.6, 0.5, nan]), torch.tensor([0.4, 0.3, nan]), torch.tensor([nan, nan, nan])),
    ]
    rows = matrix_rows("federated", "A", ("liver", "spleen", "cyst"), scores, {"liver"}, {"liver", "spleen"})
    assert [row["class"] for row in rows] == ["liver", "spleen", "cyst"]
    assert [row["status"] for row in rows] == ["local", "foreign", "unseen"]
    assert [row["cases"] for row in rows] == [2, 1, 0]
    assert rows[0]["dice"] == pytest.approx(0.7)
    assert rows[0]["nsd"] == pytest.approx(0.5)
    assert rows[0]["false_positive_ml"] is None
    assert rows[1]["false_positive_ml"] == pytest.approx(2.0)
    assert rows[2]["dice"] is None
    assert rows[2]["nsd"] is None


def test_site_without_held_out_cases_has_empty_rows():
    (row,) = matrix_rows("local", "B", ("liver",), [], set(), set())
    assert (row["dice"], row["cases"], row["status"]) == (None, 0, "unseen")
