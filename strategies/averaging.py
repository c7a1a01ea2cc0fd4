"""How the sites' tensors become one: pure functions on numpy arrays, written as weighted sums and sums of weights.

Legend: `i` a site, `c` a class, `K` classes of the run. Arrays arrive in float32 and are summed in float64. A tensor
whose key starts with `class_rows.` holds one row a class along axis 0; every other tensor is shared by all classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray]
CLASS_ROWS = "class_rows."
MOMENT = "@"  # `KEY@exp_avg` is a moment of the tensor KEY: averaged like it, never stepped by the server
MOMENT_KINDS = ("exp_avg", "exp_avg_sq")  # of AdamW, as PyTorch calls them


def moment_key(key: str, kind: str) -> str:
    """Name of a moment of the tensor `key`; `kind` is one of MOMENT_KINDS."""
    return f"{key}{MOMENT}{kind}"


@dataclass
class Sums:
    """All that is kept of the updates added so far, so memory does not grow with the number of sites.

    Attributes:
        shared: sum_i w_i theta_i for every shared tensor, float64.
        rows: sum_i a_ic R_ic for every tensor of class rows, float64.
        weight: sum_i w_i.
        evidence: sum_i a_ic, (K,).
        square_norm: sum_i w_i ||theta_i - theta||^2 over the shared tensors.
    """

    shared: dict[str, NDArray]
    rows: dict[str, NDArray]
    weight: float
    evidence: NDArray
    square_norm: float


def empty_sums(reference: Arrays, class_count: int, class_rows: str = "evidence") -> Sums:
    """Sums of no update yet.

    Args:
        reference: the global tensors that the sites start from.
        class_count: K.
        class_rows: "evidence" keeps class rows apart, "shared" averages them like any tensor (plain FedAvg).
    """
    apart = {key for key in reference if class_rows == "evidence" and key.startswith(CLASS_ROWS)}
    zeros = {key: np.zeros(array.shape, np.float64) for key, array in reference.items()}
    return Sums(
        shared={key: zero for key, zero in zeros.items() if key not in apart},
        rows={key: zero for key, zero in zeros.items() if key in apart},
        weight=0.0,
        evidence=np.zeros(class_count, np.float64),
        square_norm=0.0,
    )


def add_update(sums: Sums, reference: Arrays, arrays: Arrays, weight: float, evidence: NDArray) -> Sums:
    """The sums with one site's tensors added, in place.

    Args:
        weight: w_i of the site.
        evidence: a_ic, (K,), cases of the site that annotate each class.
    """
    for key, total in sums.shared.items():
        total += np.multiply(arrays[key], weight, dtype=np.float64)
        if MOMENT not in key:
            sums.square_norm += weight * _square_norm(arrays[key] - reference[key])
    for key, total in sums.rows.items():
        total += _along_rows(evidence, total) * arrays[key]
    sums.weight += weight
    sums.evidence += evidence
    return sums


def average_rows(total: NDArray, evidence: NDArray, previous: NDArray, row_step: float = 1.0) -> NDArray:
    """Class rows after one round: R_c + row_step (sum_i a_ic R_ic / sum_i a_ic - R_c).

    A row without evidence in this round keeps its previous value bit for bit.

    Args:
        total: sum_i a_ic R_ic, (K, ...).
        evidence: sum_i a_ic, (K,).
        previous: R, (K, ...).
        row_step: 1 moves a row all the way to the average of the sites that label its class.
    """
    seen = evidence > 0
    rows = previous.copy()
    old = previous[seen].astype(np.float64)
    average = total[seen] / _along_rows(evidence[seen], total[seen])
    rows[seen] = (old + row_step * (average - old)).astype(previous.dtype)
    return rows


def keep_rows(arrays: Arrays, previous: Arrays, moving: NDArray) -> dict[str, NDArray]:
    """The tensors, with every class row that must not move as it was before.

    Args:
        moving: (K,) bool.
    """
    return {
        key: np.where(_along_rows(moving, array), array, previous[key]) if key.startswith(CLASS_ROWS) else array
        for key, array in arrays.items()
    }


def shared_delta(sums: Sums, reference: Arrays) -> dict[str, NDArray]:
    """Average update of the shared tensors, sum_i w_i theta_i / sum_i w_i - theta, float64; zero without any weight."""
    if sums.weight <= 0:
        return {key: np.zeros_like(total) for key, total in sums.shared.items()}
    return {key: total / sums.weight - reference[key] for key, total in sums.shared.items()}


def fedexp_step(sums: Sums, delta: Arrays, upper: float, epsilon: float = 1e-3) -> float:
    """Server step that grows where the sites disagree (FedExP, Jhunjhunwala et al. 2023, arXiv:2301.09604, eq. 7).

    eta = max(1, sum_i p_i ||delta_i||^2 / (2 (||delta||^2 + epsilon))), p_i = w_i / sum_i w_i, at most `upper`.
    """
    if sums.weight <= 0:
        return min(1.0, upper)
    spread = sums.square_norm / sums.weight
    mean = sum(_square_norm(value) for key, value in delta.items() if MOMENT not in key)
    return min(max(1.0, spread / (2 * (mean + epsilon))), upper)


def step_shared(
    reference: Arrays, delta: Arrays, step: float, momentum: float = 0.0, velocity: Arrays | None = None
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Shared tensors after one round and the velocity to hand to the next: v' = momentum v + delta; theta + step v'.

    A site optimiser's moments become their plain average.
    """
    previous = velocity or {}
    moved = {key: momentum * previous[key] + value if key in previous else value for key, value in delta.items()}
    arrays = {
        key: (reference[key].astype(np.float64) + (1.0 if MOMENT in key else step) * value).astype(reference[key].dtype)
        for key, value in moved.items()
    }
    return arrays, ({key: value for key, value in moved.items() if MOMENT not in key} if momentum else {})


def _along_rows(weights: NDArray, rows: NDArray) -> NDArray:
    return weights.reshape(-1, *([1] * (rows.ndim - 1)))


def _square_norm(array: NDArray) -> float:
    flat = array.ravel()
    return float(np.dot(flat, flat))
