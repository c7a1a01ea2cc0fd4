"""Which round was the best? Of the last stage, the one of lowest smoothed training loss; no held-out case takes part.

Losses are comparable within a stage only, and a model without the last stage is not finished.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from server.state_file import SavedState
from strategies.averaging import MOMENT
from strategies.growth import grow_state
from strategies.query_fedavg import ServerState

SMOOTHING = 0.9
BEST = "best"


class BestRound:
    """Follows the rounds of a run, and those of a run that goes on."""

    def __init__(self) -> None:
        self.state: ServerState | None = None
        self._begin_stage(None)

    @classmethod
    def of(cls, saved: SavedState | None) -> BestRound:
        """As it was when a state was saved."""
        best = cls()
        if saved is None:
            return best
        number = 0
        for record in saved.state.history:
            if record["stage"] != best._stage:
                number = 0
            if best._falls(record):
                number = record["round"]
        if number == saved.state.round:
            best.state = saved.state
        elif number:
            best.state = ServerState(saved.further[BEST], saved.state.classes, number)
        return best

    def see(self, record: dict[str, Any], state: ServerState) -> None:
        """One more round and the state after it."""
        if record["stage"] != self._stage:
            self.state = None
        if self._falls(record):
            self.state = state

    def further(self, state: ServerState) -> dict[str, dict[str, NDArray]]:
        """What must be kept beside a saved state, so that `of` finds the best one again."""
        if self.state is None or self.state.round == state.round:
            return {}
        arrays = grow_state(self.state, state.classes).arrays
        return {BEST: {key: array for key, array in arrays.items() if MOMENT not in key}}

    def _begin_stage(self, stage: str | None) -> None:
        self._stage = stage
        self._smoothed: float | None = None
        self._lowest = math.inf

    def _falls(self, record: dict[str, Any]) -> bool:
        """Whether the smoothed loss is lower than ever in its stage after this round."""
        if record["stage"] != self._stage:
            self._begin_stage(record["stage"])
        loss = record["loss"]
        if loss is None or not math.isfinite(loss):
            return False
        self._smoothed = loss if self._smoothed is None else SMOOTHING * self._smoothed + (1 - SMOOTHING) * loss
        falls = self._smoothed < self._lowest
        self._lowest = min(self._lowest, self._smoothed)
        return falls
