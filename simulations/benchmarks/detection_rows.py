"""How well is one class found over held-out cases? Every measure of the zero-shot protocol, one row of a table.

Axis legend: X Y Z voxels of the working grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dsm_core.detection import LesionScores, auroc, false_positive_rate, lesion_scores, lesion_sensitivity
from dsm_core.evaluation import score_case
from simulations.benchmarks.table import Row

FALSE_POSITIVE_ML = 10.0  # a case, at which the sensitivity for lesions is read


@dataclass
class Tally:
    """What the cases said so far.

    Attributes:
        spacing_mm: of the working grid. nsd_tolerance_mm: of the surface Dice.
    """

    spacing_mm: Sequence[float]
    nsd_tolerance_mm: float
    measures: dict[str, list[float]] = field(default_factory=dict)
    lesions: list[LesionScores] = field(default_factory=list)
    presence: list[tuple[float, bool]] = field(default_factory=list)

    def add(self, score: Tensor, found: Tensor, truth: Tensor, host: Tensor, presence: float | None) -> None:
        """One case.

        Args:
            score: (X, Y, Z), higher is more of the lesion. found: (X, Y, Z) bool, the mask.
            truth: (X, Y, Z) bool. host: (X, Y, Z) bool, the true host organ with its lesions.
            presence: probability that the lesion is in the scan; None where the method says nothing.
        """
        values, held, within = score.float().numpy(), truth.numpy(), host.numpy()
        if presence is not None:
            self.presence.append((presence, bool(held.any())))
        self.lesions.append(lesion_scores(values, held, self.spacing_mm))
        case = score_case(found[None], truth[None], self.spacing_mm, self.nsd_tolerance_mm)
        if not held.any():
            self._note(fp_ml=float(case.false_positive_ml[0]))
            return
        self._note(
            auroc_host=auroc(values[within], held[within]),
            fpr95_host=false_positive_rate(values[within], held[within]),
            auroc_whole=auroc(values, held),
            fpr95_whole=false_positive_rate(values, held),
            dice=float(case.dice[0]),
            nsd=float(case.nsd[0]),
        )

    def _note(self, **measures: float) -> None:
        for name, value in measures.items():
            self.measures.setdefault(name, []).append(value)

    def row(self) -> Row:
        """Means over the cases that hold the lesion; `fp_ml` over those that do not."""
        names = ("auroc_host", "fpr95_host", "auroc_whole", "fpr95_whole", "dice", "nsd", "fp_ml")
        means = {name: _mean(self.measures.get(name, [])) for name in names}
        score, truth = zip(*self.presence, strict=True) if self.presence else ((), ())
        return {
            **means,
            "sensitivity": lesion_sensitivity(self.lesions, FALSE_POSITIVE_ML),
            "auroc_presence": auroc(np.array(score), np.array(truth)) if score else math.nan,
            "cases": len(self.measures.get("dice", [])),
        }


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return float(np.mean(finite)) if finite else math.nan


def over_seeds(rows: Sequence[Row], keys: Sequence[str], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of equal `keys` as one: the mean of every measure over the seeds, its least and greatest beside it."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for group, members in groups.items():
        merged: dict[str, Any] = dict(zip(keys, group, strict=True)) | {"seeds": len(members)}
        for name in measures:
            values = [member[name] for member in members if not math.isnan(member[name])]
            merged[name] = _mean(values)
            merged[f"{name}_range"] = f"{min(values):.3f}-{max(values):.3f}" if values else "-"
        found.append(merged)
    return found
