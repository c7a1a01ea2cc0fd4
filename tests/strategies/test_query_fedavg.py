"""Query-aware FedAvg: one round from state and answers to the next state."""

import itertools
import json

import numpy as np
import pytest

from dsm_core.classes import ClassKind
from dsm_core.config import ServerConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.stages import MOVING
from strategies.query_fedavg import QueryFedAvg, SiteFailure, SiteUpdate, site_weights

CLASSES = ("kidney", "liver", "spleen")
REFERENCE = {
    "class_rows.weight": np.array([[0.1, 0.3], [1.0, 1.0], [2.0, 2.0]], np.float32),
    "encoder": np.array([0.0, 0.0], np.float32),
}
NORTH = SiteUpdate(
    "north",
    {
        "encoder": np.array([1.0, 2.0], np.float32),
        "class_rows.weight": np.array([[7.0, 7.0], [3.0, 5.0], [9.0, 9.0]], np.float32),
    },
    {"loss": 1.0, "num-cases": 1},
)
SOUTH = SiteUpdate(
    "south",
    {
        "encoder": np.array([5.0, -2.0], np.float32),
        "class_rows.weight": np.array([[8.0, 8.0], [7.0, 1.0], [4.0, 6.0]], np.float32),
    },
    {"loss": 2.0, "num-cases": 3},
)


def contract(site, cases, **evidence):
    return LabelContract(
        site, cases, {name: ClassContract(ClassKind.ORGAN, None, count) for name, count in evidence.items()}
    )


CONTRACTS = {"north": contract("north", 1, liver=1), "south": contract("south", 3, liver=3, spleen=2)}


def strategy(**config):
    return QueryFedAvg(ServerConfig(**{"site_weight": "cases", **config}), CONTRACTS)


def broken(update):
    return SiteUpdate(update.site, {**update.arrays, "encoder": np.array([np.nan, 0], np.float32)}, update.metrics)


def test_one_round_by_hand():
    fedavg = strategy()
    state = fedavg.apply(fedavg.init(REFERENCE, CLASSES), [NORTH, SOUTH])
    np.testing.assert_array_equal(state.arrays["encoder"], np.array([4.0, -1.0], np.float32))
    np.testing.assert_array_equal(state.arrays["class_rows.weight"][1:], np.array([[6, 2], [4, 6]], np.float32))
    assert state.arrays["class_rows.weight"][0].tobytes() == REFERENCE["class_rows.weight"][0].tobytes()
    record = state.history[0]
    assert record["sites"] == ["north", "south"]
    assert record["loss"] == 1.75
    assert state.round == record["round"] == 1
    json.dumps(state.history, allow_nan=False)


def test_class_labelled_at_one_site_is_not_diluted_and_plain_fedavg_dilutes_it():
    evidence, shared = strategy(), strategy(class_rows="shared")
    row = {
        name: fedavg.apply(fedavg.init(REFERENCE, CLASSES), [NORTH, SOUTH]).arrays["class_rows.weight"][2].tolist()
        for name, fedavg in (("evidence", evidence), ("shared", shared))
    }
    assert row == {"evidence": [4.0, 6.0], "shared": [5.25, 6.75]}


def test_state_given_is_not_changed():
    fedavg = strategy()
    state = fedavg.init(REFERENCE, CLASSES)
    before = {key: value.tobytes() for key, value in state.arrays.items()}
    fedavg.apply(state, [NORTH, SOUTH])
    assert {key: value.tobytes() for key, value in state.arrays.items()} == before
    assert state.round == 0
    assert state.history == ()


def test_nan_update_is_refused_and_named_and_the_rest_counts():
    fedavg = strategy()
    state = fedavg.apply(fedavg.init(REFERENCE, CLASSES), [broken(NORTH), SOUTH])
    np.testing.assert_array_equal(state.arrays["encoder"], SOUTH.arrays["encoder"])
    assert state.history[0]["refused"] == {"north": "encoder holds 1 values that are NaN or Inf"}
    assert state.history[0]["sites"] == ["south"]


def test_loss_that_is_no_number_is_refused():
    fedavg = strategy()
    odd = SiteUpdate("south", SOUTH.arrays, {"loss": "small"})
    state = fedavg.apply(fedavg.init(REFERENCE, CLASSES), [NORTH, odd])
    assert state.history[0]["refused"] == {"south": "loss is a str, wanted a number"}


def test_nan_loss_with_finite_tensors_stays_out_of_the_history():
    fedavg = strategy()
    odd = SiteUpdate("south", SOUTH.arrays, {"loss": float("nan")})
    record = fedavg.apply(fedavg.init(REFERENCE, CLASSES), [NORTH, odd]).history[0]
    json.dumps(record, allow_nan=False)
    assert record["loss"] == 1.0


def test_round_without_any_update_keeps_every_bit():
    fedavg = strategy(momentum=0.9)
    start = fedavg.apply(fedavg.init(REFERENCE, CLASSES), [NORTH, SOUTH])
    state = fedavg.apply(start, [SiteFailure("north", "no answer within 5 s"), broken(SOUTH)])
    assert all(state.arrays[key].tobytes() == start.arrays[key].tobytes() for key in start.arrays)
    assert state.history[-1]["failed"] == {"north": "no answer within 5 s"}


def test_order_of_arrival_does_not_change_the_bits():
    draw = np.random.default_rng(1)
    names = ["a", "b", "c", "d"]
    contracts = {name: contract(name, i + 1, liver=i + 1) for i, name in enumerate(names)}
    fedavg = QueryFedAvg(
        ServerConfig(site_weight="cases", server_step="fedexp", server_lr=4.0, momentum=0.9), contracts
    )
    state = fedavg.init(REFERENCE, CLASSES)
    answers = [
        SiteUpdate(name, {k: draw.normal(size=v.shape).astype(np.float32) for k, v in REFERENCE.items()})
        for name in names[:3]
    ] + [SiteFailure("d", "not connected")]
    results = {
        b"".join(array.tobytes() for array in fedavg.apply(state, list(order)).arrays.values())
        for order in itertools.permutations(answers)
    }
    assert len(results) == 1


def test_answer_is_added_as_soon_as_those_before_it_are_in():
    fedavg, seen = strategy(), []

    def arriving():
        yield SOUTH
        yield NORTH
        seen.append("after")

    original = fedavg._evidence_rows
    fedavg._evidence_rows = lambda site, classes: seen.append(site) or original(site, classes)
    fedavg.apply(fedavg.init(REFERENCE, CLASSES), arriving())
    assert seen == ["north", "south", "after"]


def test_two_rounds_and_restart_equal_four():
    fedavg = strategy(momentum=0.5, server_step="fedexp", server_lr=3.0)
    state = fedavg.init(REFERENCE, CLASSES)
    for _ in range(4):
        state = fedavg.apply(state, [NORTH, SOUTH])
    half = fedavg.init(REFERENCE, CLASSES)
    for _ in range(2):
        half = fedavg.apply(half, [NORTH, SOUTH])
    again = strategy(momentum=0.5, server_step="fedexp", server_lr=3.0)
    for _ in range(2):
        half = again.apply(half, [NORTH, SOUTH])
    assert all(half.arrays[key].tobytes() == state.arrays[key].tobytes() for key in state.arrays)
    assert half.history == state.history


def test_site_weights():
    cases = {"a": 5, "b": 80, "c": 10}
    evidence = {"a": {"larynx": 3, "liver": 5}, "b": {"liver": 80, "spleen": 2, "cord": 0}, "c": {"spleen": 10}}
    assert site_weights("cases", cases, evidence) == {"a": 5.0, "b": 80.0, "c": 10.0}
    assert site_weights("equal", cases, evidence) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert site_weights("exclusive", cases, evidence) == {"a": 2.0, "b": 1.0, "c": 1.0}


def test_class_without_a_row_is_an_error():
    with pytest.raises(ValueError, match=r"\['spleen'\] are labelled at a site but have no row"):
        strategy().init({"encoder": REFERENCE["encoder"]}, ("kidney", "liver"))


STAGED = {
    "class_rows.residual.weight": np.array([[0.1, 0.3], [1.0, 1.0], [2.0, 2.0]], np.float32),
    "class_rows.evidence": np.array([0, 4, 2], np.float32),
    "encoder.weight": np.array([0.1, 0.7], np.float32),
    "tumors.weight": np.array([5.0], np.float32),
}
STAGED_CLASSES = ("kidney tumor", "liver", "spleen")


def staged(**config):
    """North labels an organ and the tumor, south two organs."""
    contracts = {
        "north": LabelContract("north", 1, {
            "liver": ClassContract(ClassKind.ORGAN, None, 1), "kidney tumor": ClassContract(ClassKind.LESION, None, 1),
        }),
        "south": contract("south", 3, liver=3, spleen=2),
    }  # fmt: skip
    return QueryFedAvg(ServerConfig(**config), contracts)


def trained(state, stage, site, change):
    return SiteUpdate(
        site, {key: array + np.float32(change) for key, array in MOVING[stage].part(state.arrays).items()}
    )


@pytest.mark.parametrize("how", [{}, {"class_rows": "shared", "moments": "local"}, {"momentum": 0.5}])
@pytest.mark.parametrize("stage", ["organs", "tumors"])
def test_what_a_stage_does_not_train_stays_bit_for_bit(how, stage):
    fedavg = staged(**how)
    state = fedavg.begin_stage(fedavg.init(STAGED, STAGED_CLASSES), MOVING[stage])
    for _ in range(3):
        answers = [trained(state, stage, "north", 0.3), trained(state, stage, "south", 0.1)]
        state = fedavg.apply(state, answers, moving=MOVING[stage])
    assert not state.history[-1]["refused"]
    moved = {key for key, array in STAGED.items() if state.arrays[key].tobytes() != array.tobytes()}
    assert moved == {"class_rows.residual.weight", {"organs": "encoder.weight", "tumors": "tumors.weight"}[stage]}
    rows = [row.tobytes() for row in STAGED["class_rows.residual.weight"]]
    still = [row.tobytes() == rows[i] for i, row in enumerate(state.arrays["class_rows.residual.weight"])]
    assert still == ([True, False, False] if stage == "organs" else [False, True, True])


def test_frozen_tensor_sent_back_is_refused_by_name():
    fedavg = staged()
    state = fedavg.begin_stage(fedavg.init(STAGED, STAGED_CLASSES), MOVING["tumors"])
    update = trained(state, "tumors", "north", 0.1)
    update.arrays["encoder.weight"] = STAGED["encoder.weight"]
    reason = fedavg.apply(state, [update], moving=MOVING["tumors"]).history[-1]["refused"]["north"]
    assert "nobody asked for: encoder.weight" in reason


def test_absurd_norm_counts_what_moves():
    fedavg = staged(max_update_norm=1.0)
    state = fedavg.begin_stage(fedavg.init(STAGED, STAGED_CLASSES), MOVING["tumors"])
    refused = fedavg.apply(state, [trained(state, "tumors", "north", 2.0)], moving=MOVING["tumors"]).history[-1]
    assert "server.max_update_norm=1" in refused["refused"]["north"]


def test_moments_and_momentum_begin_at_zero_with_a_stage_and_lie_beside_what_moves():
    fedavg = staged(momentum=0.5)
    state = fedavg.begin_stage(fedavg.init(STAGED, STAGED_CLASSES), MOVING["organs"])
    state = fedavg.apply(state, [trained(state, "organs", "north", 0.3)], moving=MOVING["organs"])
    assert state.arrays["encoder.weight@exp_avg"].any()
    assert state.momentum
    state = fedavg.begin_stage(state, MOVING["tumors"])
    moments = {key for key in state.arrays if "@" in key}
    assert moments == {
        f"{key}@{kind}" for key in ("tumors.weight", "class_rows.residual.weight") for kind in ("exp_avg", "exp_avg_sq")
    }
    assert not any(state.arrays[key].any() for key in moments)
    assert state.momentum == {}
    assert not any("@" in key for key in staged(moments="local").begin_stage(state, MOVING["tumors"]).arrays)


def test_only_sites_that_labelled_something_of_a_stage_teach_it():
    found = {stage: staged().teachers(moving) for stage, moving in MOVING.items()}
    assert found == {"organs": {"north", "south"}, "prior": {"north", "south"}, "tumors": {"north"}}
