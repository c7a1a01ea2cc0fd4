"""How good is a mask: Dice and surface agreement per class and case, and the rows of the site x class matrix.

Axis legend: `Q` classes, `X Y Z` voxels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from monai.metrics import compute_dice, compute_surface_dice
from torch import Tensor

# MONAI 1.6 warns of its own deprecated argument inside compute_surface_dice.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)

Status = Literal["local", "foreign", "unseen"]
MatrixRow = TypedDict(
    "MatrixRow",
    {
        "method": str,
        "site": str,
        "class": str,
        "status": Status,
        "dice": float | None,
        "nsd": float | None,
        "cases": int,
        "false_positive_ml": float | None,
    },
)


class CaseScore(NamedTuple):
    """Scores of one case.

    Attributes:
        dice: (Q,) in [0, 1]; NaN where the case does not hold or does not annotate the class.
        nsd: (Q,) in [0, 1], normalised surface Dice (Nikolov et al. 2018, arXiv:1809.04430); NaN alike.
        false_positive_ml: (Q,) predicted volume where the case annotates the class and does not hold it; else NaN.
    """

    dice: Tensor
    nsd: Tensor
    false_positive_ml: Tensor


def score_case(
    pred: Tensor,
    truth: Tensor,
    spacing_mm: Sequence[float],
    nsd_tolerance_mm: float,
    annotated: Sequence[bool] | None = None,
) -> CaseScore:
    """Dice, surface Dice and false-positive volume of one case, class by class.

    Args:
        pred: (Q, X, Y, Z) bool.
        truth: (Q, X, Y, Z) bool.
        annotated: Q claims, is the class annotated in this case? All are where this is absent.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and truth {tuple(truth.shape)} want one grid")
    pred, truth = pred.bool().cpu(), truth.bool().cpu()
    score = CaseScore(*(torch.full((len(truth),), math.nan) for _ in range(3)))
    for row, (found, wanted) in enumerate(zip(pred, truth, strict=True)):
        if annotated is not None and not annotated[row]:
            continue
        if not wanted.any():
            score.false_positive_ml[row] = int(found.sum()) * math.prod(spacing_mm) / 1000
        elif not found.any():
            score.dice[row] = score.nsd[row] = 0.0
        else:
            box = _bounding_box(found | wanted)
            found, wanted = found[box][None, None], wanted[box][None, None]
            score.dice[row] = compute_dice(found, wanted, include_background=True)
            score.nsd[row] = compute_surface_dice(
                found, wanted, [nsd_tolerance_mm], include_background=True, spacing=list(spacing_mm)
            )
    return score


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """The box of a mask and one voxel around it: the distance transform then costs the organ, not the scan."""
    held = (mask.any(2).any(1), mask.any(2).any(0), mask.any(1).any(0))
    ends = [(int(axis.nonzero()[0]), int(axis.nonzero()[-1])) for axis in held]
    return tuple(slice(max(low - 1, 0), high + 2) for low, high in ends)


def class_status(name: str, site_classes: Collection[str], labelled_classes: Collection[str]) -> Status:
    """Local: this site labels the class; foreign: only other sites do; unseen: no site does.

    Args:
        site_classes: what this site's label contract names.
        labelled_classes: what the label contracts of all sites name.
    """
    if name in site_classes:
        return "local"
    return "foreign" if name in labelled_classes else "unseen"


def matrix_rows(
    method: str,
    site: str,
    classes: Sequence[str],
    scores: Iterable[CaseScore],
    site_classes: Collection[str],
    labelled_classes: Collection[str],
) -> list[MatrixRow]:
    """One row per class: means over the site's cases that hold it.

    Args:
        classes: Q names, in the order of the scores.
        scores: one per held-out case of the site.
    """
    held = list(scores)
    columns = [torch.stack([score[kind] for score in held]) if held else None for kind in range(3)]
    rows: list[MatrixRow] = []
    for index, name in enumerate(classes):
        dice, nsd, false_positive_ml = (
            torch.zeros(0) if column is None else column[:, index][~column[:, index].isnan()] for column in columns
        )
        rows.append(
            {
                "method": method,
                "site": site,
                "class": name,
                "status": class_status(name, site_classes, labelled_classes),
                "dice": _mean(dice),
                "nsd": _mean(nsd),
                "cases": len(dice),
                "false_positive_ml": _mean(false_positive_ml),
            }
        )
    return rows


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
