"""Who may come in, and that nothing old moves by a bit when a site brings a new class."""

import numpy as np
import pytest

from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import ServerConfig, TextConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.text_building import build_text_space
from server.members import EVIDENCE, Members, TurnedAway, let_in
from strategies.query_fedavg import QueryFedAvg


def contract(site, **cases):
    classes = {name: ClassContract(ClassKind.ORGAN, None, count) for name, count in cases.items()}
    return LabelContract(site, max(cases.values()), classes)


@pytest.fixture
def run():
    """Two sites after some rounds: members, and a state whose rows hold odd numbers."""
    contracts = {site: contract(site, liver=3, spleen=1) for site in ("north", "south")}
    text = build_text_space([describe_class(name) for name in ("liver", "spleen")], TextConfig(encoder="offline"))
    strategy = QueryFedAvg(ServerConfig(site_weight="cases"), contracts)
    draw = np.random.default_rng(0)
    arrays = {
        key: draw.normal(size=(2, 3)).astype(np.float32) for key in ("class_rows.bias", "class_rows.bias@exp_avg")
    }
    arrays |= {EVIDENCE: np.array([6, 2], np.float32), "encoder": np.ones(3, np.float32)}
    return Members({"north": 1, "south": 2}, contracts, text, strategy), strategy.init(arrays, text.names)


def test_new_class_gets_a_vector_a_zero_row_and_evidence_and_nothing_old_moves(run):
    members, state = run
    grown, after = let_in(members, state, 3, contract("east", liver=2, pancreas=5), {1, 2, 3})
    assert grown.nodes == {"east": 3, "north": 1, "south": 2}
    assert after.classes == grown.text.names == ("liver", "pancreas", "spleen")
    assert grown.text.vectors[[0, 2]].numpy().tobytes() == members.text.vectors.numpy().tobytes()
    for key in ("class_rows.bias", "class_rows.bias@exp_avg"):
        assert after.arrays[key][[0, 2]].tobytes() == state.arrays[key].tobytes()
        assert not after.arrays[key][1].any()
    assert after.arrays[EVIDENCE].tolist() == [8, 5, 2]
    assert grown.strategy.weights == {"east": 5.0, "north": 3.0, "south": 3.0}
    assert state.classes == ("liver", "spleen")


def test_newcomer_without_a_new_class_leaves_the_text_space_as_it_is(run):
    members, state = run
    grown, after = let_in(members, state, 3, contract("east", liver=2), {3})
    assert grown.text is members.text
    assert after.arrays[EVIDENCE].tolist() == [8, 2]


def test_site_that_comes_back_at_another_node_changes_nothing_else(run):
    members, state = run
    back, after = let_in(members, state, 7, members.contracts["north"], {2, 7})
    assert back.nodes == {"north": 7, "south": 2}
    assert after is state
    assert back.strategy is members.strategy


@pytest.mark.parametrize(
    ("newcomer", "node", "reason"),
    [
        (contract("north", liver=3, spleen=1), 9, "another node is connected as site 'north'"),
        (contract("north", liver=4), 1, r"declares 4 cases with liver \(4\); when the run began it was 3 cases"),
        (contract("east", **{"hepatic parenchyma": 2}), 3, "one meaning under several names"),
        (
            LabelContract("east", 2, {"liver": ClassContract(ClassKind.LESION, None, 2)}),
            3,
            "'liver' is lesion at east, organ at north and south",
        ),
    ],
)
def test_who_may_not_come_in_is_told_why(run, newcomer, node, reason):
    members, state = run
    with pytest.raises(TurnedAway, match=reason):
        let_in(members, state, node, newcomer, {1, 2, 3, 9})
