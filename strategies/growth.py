"""How does the state take in new classes: a zero row for each, every old row moved bit for bit to its new place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from strategies.averaging import CLASS_ROWS
from strategies.query_fedavg import ServerState


def grow_state(state: ServerState, classes: Sequence[str]) -> ServerState:
    """The same state over more classes.

    Args:
        classes: names along axis 0 of the new class rows; those of `state` are among them.

    Raises:
        ValueError: a class of the state is not among them.
    """
    if tuple(classes) == state.classes:
        return state
    return replace(
        state,
        arrays=grow_rows(state.arrays, state.classes, classes),
        momentum=grow_rows(state.momentum, state.classes, classes),
        classes=tuple(classes),
    )


def grow_rows(arrays: Mapping[str, NDArray], old: Sequence[str], new: Sequence[str]) -> dict[str, NDArray]:
    """The arrays, their class rows (and moments of class rows) spread from the `old` classes over the `new` ones.

    Raises:
        ValueError: an old class is not among the new ones.
    """
    if lost := sorted(set(old) - set(new)):
        raise ValueError(f"classes {lost} have rows and are not among the new classes; a class never leaves a run")
    place = [list(new).index(name) for name in old]
    return {
        key: _spread(array, place, len(new)) if key.startswith(CLASS_ROWS) else array for key, array in arrays.items()
    }


def _spread(rows: NDArray, place: Sequence[int], count: int) -> NDArray:
    grown = np.zeros((count, *rows.shape[1:]), rows.dtype)
    grown[place] = rows
    return grown
