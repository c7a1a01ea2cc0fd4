"""The best round is the one of lowest smoothed loss, also where the run was stopped on the way."""

from types import SimpleNamespace

import numpy as np
import pytest

from server.state_file import SavedState
from simulations.best import BestRound
from strategies.query_fedavg import ServerState

LOSSES = [5.0, 1.0, float("nan"), 0.5, 9.0, 9.0, 0.1]


def state_after(round):
    arrays = {"encoder": np.full(2, round, np.float32), "encoder@exp_avg": np.zeros(2, np.float32)}
    history = tuple(
        {"round": r, "stage": "organs", "loss": None if np.isnan(LOSSES[r - 1]) else LOSSES[r - 1]}
        for r in range(1, round + 1)
    )
    return ServerState(arrays, ("liver",), round, history=history)


def followed(best, rounds):
    for round in rounds:
        state = state_after(round)
        best.see(state.history[-1], state)
    return best


def test_best_is_the_lowest_smoothed_loss_not_the_lowest():
    assert followed(BestRound(), range(1, 8)).state.round == 4


@pytest.mark.parametrize("stop", range(1, 7))
def test_stopped_and_gone_on_with_it_is_the_same(stop):
    before = followed(BestRound(), range(1, stop + 1))
    state = state_after(stop)
    further = before.further(state)
    assert all("@" not in key for arrays in further.values() for key in arrays)
    after = BestRound.of(SavedState(state, {}, SimpleNamespace(), further))
    assert after.state.round == before.state.round
    np.testing.assert_array_equal(after.state.arrays["encoder"], before.state.arrays["encoder"])
    assert followed(after, range(stop + 1, 8)).state.round == 4


def test_nothing_saved_is_a_new_beginning():
    assert BestRound.of(None).state is None


def test_losses_of_an_earlier_stage_do_not_count():
    best = followed(BestRound(), range(1, 5))
    assert best.state.round == 4
    history = state_after(4).history
    for round, loss in ((5, 3.0), (6, 2.0), (7, 8.0)):
        history += ({"round": round, "stage": "prior", "loss": loss},)
        state = ServerState({"encoder": np.full(2, round, np.float32)}, ("liver",), round, history=history)
        best.see(history[-1], state)
        after = BestRound.of(SavedState(state, {}, SimpleNamespace(), best.further(state)))
        assert after.state.round == best.state.round == min(round, 6)


def test_a_stage_without_any_loss_leaves_no_best():
    best = followed(BestRound(), range(1, 5))
    best.see({"round": 5, "stage": "prior", "loss": None}, state_after(5))
    assert best.state is None
