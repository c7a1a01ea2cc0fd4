"""Sites that come, go and come back while the rounds go on."""

import time

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import Config, PriorConfig, ServerConfig, TextConfig, TumorsConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.stages import MOVING
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace
from server.members import EVIDENCE, Members
from server.membership import Membership
from server.rounds import run_rounds
from simulations.grid import run_in_process
from strategies import messages
from strategies.query_fedavg import QueryFedAvg


def contract(site, *classes, cases=2):
    return LabelContract(site, cases, {name: ClassContract(ClassKind.ORGAN, None, cases) for name in classes})


NORTH, SOUTH, EAST = contract("north", "liver"), contract("south", "liver", "spleen"), contract("east", "pancreas")


class Sites:
    """A federation whose sites add 1 to every tensor, and whose nodes are online when `online(round)` says so."""

    def __init__(self, contracts, enrolled, online, rounds=4, silent=(), **server):
        self.contracts, self.enrolled, self.online, self.silent = contracts, enrolled, online, silent
        self.config = Config(
            rounds=rounds,
            prior=PriorConfig(rounds=0),
            tumors=TumorsConfig(rounds=0),
            server=ServerConfig(**{"round_timeout_s": 20, "quorum": 0.25, **server}),
        )
        self.held, self.round, self.states = {}, 0, {}
        self.app = ClientApp()
        self.app.query("enrol")(self.enrol)
        self.app.query("text")(self.text)
        self.app.train()(self.train)

    def enrol(self, message, context):
        site = context.node_config["site-dir"]
        if site in self.silent:
            time.sleep(1.0)
        return Message(messages.pack_contract(self.contracts[site].to_dict()), reply_to=message)

    def text(self, message, context):
        content, stated = messages.unpack_text(message.content)
        self.held[context.node_config["site-dir"]] = TextSpace.from_bytes(content)
        return Message(messages.pack_text_receipt(stated), reply_to=message)

    def train(self, message, context):
        request = messages.unpack_train(message.content)
        held = self.held.get(context.node_config["site-dir"])
        if held is None or held.hash != request.text_hash:
            return messages.error_reply(messages.TEXT_CODE, "another text space", message)
        arrays = {key: array + np.float32(1) for key, array in MOVING[request.order.stage].part(request.arrays).items()}
        return Message(messages.pack_trained(arrays, {"loss": 1.0, "num-cases": 2}), reply_to=message)

    def run(self):
        """The last state and who took part in the end."""

        def serve(grid, context):
            nodes = dict(zip(self.contracts, grid.get_node_ids(), strict=True))
            grid.get_node_ids = lambda: [nodes[site] for site in self.online(self.round + 1)]
            contracts = {site: self.contracts[site] for site in self.enrolled}
            names = {name for held in contracts.values() for name in held.classes}
            text = build_text_space(map(describe_class, names), TextConfig(encoder="offline"))
            strategy = QueryFedAvg(self.config.server, contracts)
            members = Members({site: nodes[site] for site in self.enrolled}, contracts, text, strategy)
            evidence = [sum(c.evidence().get(name, 0) for c in contracts.values()) for name in text.names]
            rows = np.random.default_rng(0).normal(size=(len(text.names), 3)).astype(np.float32)
            arrays = {
                "class_rows.bias.weight": rows,
                EVIDENCE: np.array(evidence, np.float32),
                "encoder.weight": rows[0],
            }
            membership = Membership(grid, self.config, members)
            state = strategy.init(arrays, text.names)
            self.states[0] = state
            state = run_rounds(grid, state, strategy, self.config, members.nodes, text, self.note, membership)
            return state, membership.members

        return run_in_process(serve, self.app, list(self.contracts), threads=4)

    def note(self, round, record, state):
        self.round, self.states[round] = round, state
        time.sleep(0.05)  # an answer to the question who one is needs a moment


def row(state, name):
    return state.arrays["class_rows.bias.weight"][state.classes.index(name)]


def test_site_that_connects_later_trains_from_the_next_round_and_its_class_gets_a_row():
    contracts = {"north": NORTH, "south": SOUTH, "east": EAST}
    sites = Sites(contracts, ["north", "south"], lambda round: list(contracts)[: 2 if round < 3 else 3], rounds=6)
    state, members = sites.run()
    joined = [record["round"] for record in state.history if "joined" in record]
    assert len(joined) == 1
    first = joined[0]
    assert first in (3, 4)
    assert state.history[first - 1]["joined"] == {"east": ["pancreas"]}
    assert [record["sites"] for record in state.history[: first - 1]] == [["north", "south"]] * (first - 1)
    assert [record["sites"] for record in state.history[first - 1 :]] == [["east", "north", "south"]] * (7 - first)
    assert state.classes == members.text.names == ("liver", "pancreas", "spleen")
    assert state.arrays[EVIDENCE].tolist() == [4, 2, 2]
    before = sites.states[first - 1]
    assert before.classes == ("liver", "spleen")
    after = sites.states[first]
    for name in ("liver", "spleen"):
        np.testing.assert_array_equal(row(after, name), row(before, name) + 1)
    np.testing.assert_array_equal(row(after, "pancreas"), np.ones(3))
    assert {space.hash for space in sites.held.values()} == {members.text.hash}


def test_rows_of_a_class_whose_sites_have_left_stay_bit_for_bit_and_its_evidence_stays_declared():
    contracts = {"north": NORTH, "south": SOUTH}
    sites = Sites(contracts, ["north", "south"], lambda round: ["north", "south"] if round < 3 else ["north"])
    state, _ = sites.run()
    assert [record["sites"] for record in state.history] == [["north", "south"]] * 2 + [["north"]] * 2
    assert state.history[-1]["failed"] == {"south": "not connected"}
    assert row(state, "spleen").tobytes() == row(sites.states[2], "spleen").tobytes()
    np.testing.assert_array_equal(row(state, "liver"), row(sites.states[2], "liver") + 2)
    assert state.arrays[EVIDENCE].tolist() == [4, 2]


def test_site_that_comes_back_is_asked_again():
    contracts = {"north": NORTH, "south": SOUTH}
    sites = Sites(contracts, ["north", "south"], lambda round: ["north", "south"] if round != 2 else ["north"])
    state, _ = sites.run()
    assert [len(record["sites"]) for record in state.history] == [2, 1, 2, 2]


@pytest.mark.parametrize(
    ("newcomer", "reason"),
    [
        (LabelContract("east", 2, {"liver": ClassContract(ClassKind.LESION, None, 2)}), "'liver' is lesion at east"),
        (contract("north", "liver", cases=9), "another node is connected as site 'north'"),
    ],
)
def test_site_that_contradicts_is_turned_away_once_and_the_run_goes_on(newcomer, reason):
    contracts = {"north": NORTH, "other": newcomer}
    sites = Sites(contracts, ["north"], lambda round: ["north", "other"], rounds=6)
    state, members = sites.run()
    assert [record["sites"] for record in state.history] == [["north"]] * 6
    told = [record["turned_away"] for record in state.history if "turned_away" in record]
    assert len(told) == 1
    assert reason in told[0][newcomer.site]
    assert members.text.names == ("liver",)


def test_nobody_waits_for_a_newcomer_that_says_nothing():
    contracts = {"north": NORTH, "east": EAST}
    sites = Sites(contracts, ["north"], lambda round: ["north", "east"], rounds=3, silent=("east",))
    state, _ = sites.run()
    assert [record["sites"] for record in state.history] == [["north"]] * 3
    assert sum(record["seconds"] for record in state.history) < 1.0


def test_grown_text_space_is_published_before_its_round_and_again_where_that_failed():
    """The service may be on a full disk for a while; the rounds go on, and it has the text space a round later."""
    told, rounds = [], []

    def publish(text):
        told.append((len(rounds), text.names))
        if len(told) == 1:
            raise OSError(28, "No space left on device")

    def serve(grid, context):
        space = build_text_space([describe_class("liver")], TextConfig(encoder="offline"))
        members = Members({"north": 1}, {"north": NORTH}, space, QueryFedAvg(ServerConfig(), {"north": NORTH}))
        membership = Membership(grid, Config(), members, publish=publish)
        state = members.strategy.init({EVIDENCE: np.ones(1, np.float32)}, space.names)
        for newcomer in (None, EAST, None, None):
            membership._answers += [(9, newcomer)] if newcomer else []
            state, _ = membership.admit(state)
            rounds.append(state.round)

    run_in_process(serve, ClientApp(), [])
    assert told == [(1, ("liver", "pancreas")), (2, ("liver", "pancreas"))]
