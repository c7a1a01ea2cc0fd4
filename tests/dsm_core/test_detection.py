"""Detection worked out by hand: few voxels, known ranks, lesions of known volume."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm_core.detection import auroc, false_positive_rate, lesion_scores, lesion_sensitivity

SPACING_MM = (10.0, 10.0, 10.0)  # a voxel is one millilitre


def test_auroc_counts_pairs():
    # pairs (lesion, background): 3>1, 3>2, 3>2; 2>1, 2=2, 2=2 -> 3 + 1 + 2 x 1/2 = 5 of 6
    assert auroc([3, 2, 1, 2, 2], [1, 1, 0, 0, 0]) == pytest.approx(5 / 6)


def test_auroc_of_a_constant_is_one_half_and_of_the_truth_is_one():
    truth = [1, 0, 0, 1]
    assert auroc([7, 7, 7, 7], truth) == 0.5
    assert auroc(truth, truth) == 1
    assert auroc([-1, 0, 0, -1], truth) == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=25))
def test_auroc_is_the_share_of_rightly_ordered_pairs(voxels):
    inside = [score for score, held in voxels if held]
    outside = [score for score, held in voxels if not held]
    found = auroc(*zip(*voxels, strict=True))
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert found == pytest.approx(sum(pairs) / len(pairs) if pairs else math.nan, nan_ok=True)


def test_fpr95_marks_background_at_the_threshold_too():
    lesion = list(range(101, 121))  # 19 of 20 voxels reach 102
    background = [50, 101, 102, 102, 200]
    truth = [1] * 20 + [0] * 5
    assert false_positive_rate(lesion + background, truth) == pytest.approx(3 / 5)
    assert false_positive_rate(lesion + background, truth, sensitivity=1.0) == pytest.approx(4 / 5)


@pytest.mark.parametrize("metric", [auroc, false_positive_rate])
def test_truth_of_one_kind_has_no_score_and_bad_input_is_refused(metric):
    assert math.isnan(metric([1.0, 2.0], [0, 0]))
    assert math.isnan(metric([1.0, 2.0], [1, 1]))
    with pytest.raises(ValueError, match="one shape"):
        metric([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="NaN"):
        metric([1.0, math.nan], [1, 0])


def test_a_sensitivity_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"found 95"):
        false_positive_rate([1.0, 2.0], [1, 0], sensitivity=95)


def case(lesions, background):
    """A row of lesions apart from one another, and background voxels with these scores, the others at 0."""
    score, truth = np.zeros((8, 8, 8)), np.zeros((8, 8, 8), bool)
    for place, value in enumerate(lesions):
        score[2 * place, 0, 0], truth[2 * place, 0, 0] = value, True
    score[:, 7, 7][: len(background)] = background
    return lesion_scores(score, truth, SPACING_MM)


def test_lesions_that_touch_at_a_corner_are_one():
    truth = np.zeros((4, 4, 4), bool)
    truth[0, 0, 0] = truth[1, 1, 1] = truth[3, 3, 3] = True
    held = lesion_scores(truth.astype(float), truth, SPACING_MM)
    assert held.lesions.tolist() == [1, 1]
    assert held.background.size == 61
    assert held.voxel_ml == pytest.approx(1.0)


def test_a_lesion_is_found_when_a_tenth_of_it_is_marked():
    score, truth = np.zeros((5, 5, 5)), np.zeros((5, 5, 5), bool)
    truth[:, 0, :4] = True
    score[0, 0, :3] = (0.9, 0.8, 0.7)
    assert lesion_scores(score, truth, SPACING_MM).lesions.tolist() == [0.8]  # 2 of 20 voxels
    assert lesion_scores(score, truth, SPACING_MM, found_share=0.15).lesions.tolist() == [0.7]


def test_sensitivity_at_a_false_positive_volume():
    cases = [case([0.9, 0.5], [0.7, 0.6]), case([0.65], [0.4]), case([], [0.8])]
    # background in falling order: .8 .7 .6 .4, one ml each; three cases
    assert lesion_sensitivity(cases, 0.0) == pytest.approx(1 / 3)  # above .8: only .9
    assert lesion_sensitivity(cases, 1 / 3) == pytest.approx(1 / 3)  # above .7
    assert lesion_sensitivity(cases, 2 / 3) == pytest.approx(2 / 3)  # above .6: .9 and .65
    assert lesion_sensitivity(cases, 1.0) == pytest.approx(1.0)  # above .4: all


def test_ties_with_the_background_are_not_found_for_free():
    cases = [case([0.5], [0.5, 0.5])]
    assert lesion_sensitivity(cases, 1.0) == 0  # a threshold of .5 marks two ml
    assert lesion_sensitivity(cases, 2.0) == 1


def test_voxels_of_several_sizes_are_counted_in_millilitres():
    fine = lesion_scores(np.array([[[0.9, 0.3, 0.2]]]), np.array([[[True, False, False]]]), (1, 1, 1))
    coarse = lesion_scores(np.array([[[0.25, 0.8]]]), np.array([[[True, False]]]), SPACING_MM)
    assert lesion_sensitivity([fine, coarse], 0.4) == pytest.approx(1 / 2)  # the millilitre at .8 is too much
    assert lesion_sensitivity([fine, coarse], 0.5005) == pytest.approx(1.0)  # and .001 ml more is at .3


def test_without_lesions_there_is_no_sensitivity():
    assert math.isnan(lesion_sensitivity([], 1.0))
    assert math.isnan(lesion_sensitivity([case([], [0.5])], 1.0))
