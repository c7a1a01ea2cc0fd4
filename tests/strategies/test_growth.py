"""New classes take their place among the rows: zeros for them, the old ones bit for bit."""

import numpy as np
import pytest

from strategies.growth import grow_rows, grow_state
from strategies.query_fedavg import ServerState

ROWS = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
STATE = ServerState(
    arrays={"class_rows.bias": ROWS, "class_rows.bias@exp_avg": ROWS * 2, "encoder": np.ones(3, np.float32)},
    classes=("kidney", "spleen"),
    round=7,
    momentum={"class_rows.bias": ROWS.astype(np.float64), "encoder": np.ones(3)},
    history=({"round": 7},),
)


def test_old_rows_move_to_their_names_and_new_ones_are_zero():
    grown = grow_state(STATE, ("aorta", "kidney", "liver", "spleen"))
    for key, scale in (("class_rows.bias", 1), ("class_rows.bias@exp_avg", 2)):
        assert grown.arrays[key].dtype == np.float32
        assert grown.arrays[key][[1, 3]].tobytes() == (ROWS * np.float32(scale)).tobytes()
        assert not grown.arrays[key][[0, 2]].any()
    assert grown.arrays["encoder"] is STATE.arrays["encoder"]
    assert grown.momentum["class_rows.bias"].shape == (4, 2)
    assert (grown.round, grown.history, grown.classes) == (7, STATE.history, ("aorta", "kidney", "liver", "spleen"))


def test_same_classes_give_the_same_state():
    assert grow_state(STATE, ["kidney", "spleen"]) is STATE


def test_class_that_would_be_lost_is_named():
    with pytest.raises(ValueError, match=r"\['spleen'\] have rows"):
        grow_rows(STATE.arrays, STATE.classes, ["kidney", "liver"])
