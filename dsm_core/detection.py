"""Does a score find the lesions: voxel AUROC, FPR95, and the share of lesions found at a false-positive volume.

Nothing here depends on a threshold that somebody chose. Axis legend: `X Y Z` voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import generate_binary_structure, label
from scipy.stats import rankdata

FOUND_SHARE = 0.1  # of a lesion's voxels that must be marked before it counts as found
_TOUCHING = generate_binary_structure(3, 3)  # 26 neighbours


@dataclass(frozen=True)
class LesionScores:
    """What one case says about its lesions.

    Attributes:
        lesions: (L,) for every lesion, the largest threshold at which it still counts as found.
        background: (N,) scores of the voxels that belong to no lesion.
        voxel_ml: volume of a voxel.
    """

    lesions: NDArray[Any]
    background: NDArray[Any]
    voxel_ml: float


def auroc(score: ArrayLike, truth: ArrayLike) -> float:
    """Probability that a voxel of the lesion scores above one outside, ties counting half (Mann-Whitney).

    Args:
        score, truth: alike in shape; restrict both to a region (the host organ) by indexing.

    Returns:
        NaN where the truth is all or nothing.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    values, held = _flat(score, truth)
    inside = int(held.sum())
    outside = held.size - inside
    if not inside or not outside:
        return math.nan
    ranks = float(rankdata(values)[held].sum())
    return (ranks - inside * (inside + 1) / 2) / (inside * outside)


def false_positive_rate(score: ArrayLike, truth: ArrayLike, sensitivity: float = 0.95) -> float:
    """Share of the voxels outside that are marked when at least this share of the lesion's voxels is (FPR95).

    Returns:
        NaN where the truth is all or nothing.

    Raises:
        ValueError: shapes differ, a score is NaN, or the sensitivity is not in (0, 1].
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity wants a share in (0, 1], found {sensitivity}")
    values, held = _flat(score, truth)
    if held.all() or not held.any():
        return math.nan
    return float((values[~held] >= _reached_by(values[held], sensitivity)).mean())


def lesion_scores(
    score: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], found_share: float = FOUND_SHARE
) -> LesionScores:
    """A case taken apart into its lesions (connected components of the truth) and the background.

    Args:
        score: (X, Y, Z), higher is more of a lesion. truth: (X, Y, Z) bool.
        found_share: share of a lesion's voxels that must reach a threshold.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    _flat(score, truth)
    components, count = label(truth, structure=_TOUCHING)
    found = [_reached_by(score[components == i], found_share) for i in range(1, count + 1)]
    return LesionScores(np.array(found, float), score[components == 0], math.prod(spacing_mm) / 1000)


def lesion_sensitivity(cases: Sequence[LesionScores], false_positive_ml: float) -> float:
    """Share of all lesions found when the marked background may be this much a case, on average.

    One threshold serves all cases: the lowest that keeps to the volume. Cases without a lesion count in the volume.

    Returns:
        NaN where no case holds a lesion.
    """
    lesions = np.concatenate([case.lesions for case in cases]) if cases else np.zeros(0)
    if not lesions.size:
        return math.nan
    return float((lesions > _too_low(cases, false_positive_ml * len(cases))).mean())


def _too_low(cases: Sequence[LesionScores], allowed_ml: float) -> float:
    """The highest background score that is no threshold any more, because too much background reaches it."""
    kept = []
    for case in cases:  # in a case alone, no more voxels than this can be marked: the others need no sorting
        count = min(case.background.size, int(allowed_ml / case.voxel_ml) + 1)
        top = np.partition(case.background, -count)[-count:] if count else case.background
        kept.append(np.stack([top, np.full(top.shape, case.voxel_ml)]))
    scores, volumes = np.concatenate(kept, 1)
    order = np.argsort(-scores, kind="stable")
    scores, marked_ml = scores[order], np.cumsum(volumes[order])
    beyond = scores[marked_ml > allowed_ml * (1 + 1e-9)]
    return float(beyond[0]) if beyond.size else -math.inf


def _reached_by(values: NDArray[Any], share: float) -> float:
    """The largest threshold that at least this share of the values reach."""
    needed = max(1, math.ceil(share * values.size - 1e-9))
    return float(np.partition(values, values.size - needed)[values.size - needed])


def _flat(score: ArrayLike, truth: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    values, held = np.asarray(score), np.asarray(truth, bool)
    if values.shape != held.shape:
        raise ValueError(f"score {values.shape} and truth {held.shape} want one shape")
    if np.isnan(values).any():
        raise ValueError("a score is NaN; it cannot be ranked")
    return values.ravel(), held.ravel()
