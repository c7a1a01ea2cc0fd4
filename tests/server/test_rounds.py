"""The round loop against sites that answer, fail, stay silent or lack the text space."""

import threading
import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.clientapp import ClientApp

from dsm_core.classes import ClassKind
from dsm_core.config import Config, ServerConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.stages import MOVING
from server.rounds import RoundError, run_rounds, site_rate
from server.waiting import Waiting
from simulations.grid import run_in_process
from strategies import messages
from strategies.query_fedavg import QueryFedAvg
from tests.server.answering_sites import CLASSES, ORGANS_ONLY, REFERENCE, SITES, TEXT, rounds_with


def test_every_round_is_reported_and_rows_nobody_labels_stay():
    seen = []
    state = rounds_with(lambda *_: 1.0, rounds=3, on_round=lambda *event: seen.append(event))
    assert [number for number, _, _ in seen] == [1, 2, 3]
    assert seen[-1][2] is state
    assert seen[0][1]["sites"] == list(SITES)
    assert seen[0][1]["seconds"] > 0
    np.testing.assert_array_equal(state.arrays["encoder.weight"], np.full(4, 3, np.float32))
    np.testing.assert_array_equal(state.arrays["class_rows.bias.weight"], [[0, 0, 0], [3, 3, 3]])


def test_nan_update_of_one_site_is_named_and_the_round_goes_on():
    state = rounds_with(lambda site, *_: np.nan if site == "north" else 1.0, rounds=1)
    assert list(state.history[0]["refused"]) == ["north"]
    assert "NaN" in state.history[0]["refused"]["north"]
    np.testing.assert_array_equal(state.arrays["encoder.weight"], np.ones(4, np.float32))


def test_failing_site_is_named_with_its_reason():
    state = rounds_with(lambda site, *_: "disk full" if site == "west" else 1.0, rounds=1)
    assert state.history[0]["failed"] == {"west": "disk full"}


def test_every_site_failing_stops_the_run_with_every_reason():
    with pytest.raises(RoundError, match=r"round 1: 0 of 4 sites") as error:
        rounds_with(lambda site, *_: f"{site} is broken")
    assert all(f"{site}: {site} is broken" in str(error.value) for site in SITES)
    assert error.value.state.round == 0


def test_below_quorum_stops_and_keeps_the_last_good_state():
    def behave(site, request, _):
        return 1.0 if request.order.round == 1 or site == "east" else np.inf

    with pytest.raises(RoundError, match=r"round 2: 1 of 4 .* server.quorum wants 3.*north: refused") as error:
        rounds_with(behave, quorum=0.75)
    assert error.value.state.round == 1
    np.testing.assert_array_equal(error.value.state.arrays["encoder.weight"], np.ones(4, np.float32))


def test_silent_site_is_named_at_the_deadline():
    def behave(site, *_):
        if site == "north":
            time.sleep(2.0)
        return 1.0

    state = rounds_with(behave, rounds=1, round_timeout_s=0.4)
    (reason,) = state.history[0]["failed"].values()
    assert reason.startswith("no answer within 0.4 s, though it is connected: slower than server.round_timeout_s")
    assert 0.3 < state.history[0]["seconds"] < 1.9
    assert state.history[0]["sites"] == ["east", "south", "west"]


def test_site_that_is_cut_off_in_a_round_is_told_from_a_slow_one():
    gone = set()

    def behave(site, *_):
        if site in ("north", "south"):
            if site == "north":
                gone.add(site)
            time.sleep(1.5)
        return 1.0

    state = rounds_with(behave, rounds=1, round_timeout_s=0.6, threads=4, offline=lambda: gone)
    assert state.history[0]["failed"]["north"] == "no answer within 0.6 s: its connection was lost"
    assert "though it is connected" in state.history[0]["failed"]["south"]


def test_late_answer_does_not_enter_the_next_round():
    def behave(site, request, _):
        if site == "north" and request.order.round == 1:
            time.sleep(1.2)
            return 50.0
        return 1.0

    state = rounds_with(behave, rounds=2, round_timeout_s=1.0)
    assert list(state.history[0]["failed"]) == ["north"]
    assert state.history[1]["sites"] == list(SITES)
    np.testing.assert_array_equal(state.arrays["encoder.weight"], np.full(4, 2, np.float32))


def test_late_answer_is_on_record():
    next_round = threading.Event()

    def behave(site, request, _):
        if request.order.round == 2:
            next_round.set()
        elif site == "north":
            next_round.wait(60)
        return 1.0

    state = rounds_with(behave, rounds=2, round_timeout_s=1.0)
    assert "late" not in state.history[0]
    (late,) = state.history[1]["late"]
    assert (late["site"], late["round"]) == ("north", 1)
    assert 0 < late["late_s"] < 5
    assert state.history[1]["sites"] == list(SITES)


def test_share_of_the_sites_is_asked_drawn_from_seed_and_round():
    asked = []

    def behave(site, request, _):
        asked.append((request.order.round, site))
        return 1.0

    state = rounds_with(behave, rounds=6, participation=0.5)
    drawn = [record["asked"] for record in state.history]
    assert all(len(sites) == 2 and sites == record["sites"] for sites, record in zip(drawn, state.history, strict=True))
    assert len({tuple(sites) for sites in drawn}) > 1
    assert {site for sites in drawn for site in sites} == set(SITES)
    assert sorted(asked) == [(number, site) for number, sites in enumerate(drawn, start=1) for site in sites]
    assert all(not record["failed"] for record in state.history)
    np.testing.assert_array_equal(state.arrays["encoder.weight"], np.full(4, 6, np.float32))
    assert drawn == [record["asked"] for record in rounds_with(lambda *_: 1.0, rounds=6, participation=0.5).history]


def test_rate_follows_the_number_of_sites_that_are_asked():
    rates = []
    rounds_with(lambda site, request, _: rates.append(request.order.lr) or 1.0, rounds=1, participation=0.25)
    assert rates == [Config().train.lr]


def test_disconnected_sites_are_not_drawn_while_enough_others_are_there():
    state = rounds_with(lambda *_: 1.0, rounds=3, participation=0.5, offline=("east", "west"))
    assert [record["asked"] for record in state.history] == [["north", "south"]] * 3
    assert all(not record["failed"] for record in state.history)


def test_round_waits_for_a_quorum_to_connect():
    started = time.monotonic()

    def offline():
        return SITES[1:] if time.monotonic() < started + 0.7 else ()

    state = rounds_with(lambda *_: 1.0, rounds=1, offline=offline)
    assert state.history[0]["sites"] == list(SITES)
    assert state.history[0]["seconds"] > 0.6


def test_quorum_that_never_connects_stops_the_run_at_the_deadline_and_nobody_trains_for_nothing():
    trained = []
    with pytest.raises(RoundError, match=r"east: not asked, since too few .*north: not connected") as error:
        rounds_with(lambda site, *_: trained.append(site) or 1.0, offline=SITES[1:], round_timeout_s=0.3)
    assert trained == []
    assert error.value.state.round == 0


def test_wait_names_the_sites_and_the_record_says_when_each_answered(monkeypatch):
    monkeypatch.setattr("server.waiting.LINE_EVERY_S", 0.2)
    said = []
    seconds = {"north": 0.5}

    def behave(site, *_):
        time.sleep(seconds.get(site, 0))
        return "disk full" if site == "west" else 1.0

    state = rounds_with(behave, rounds=1, waiting=Waiting(say=said.append), round_timeout_s=50)
    assert said
    assert said[-1].startswith("round 1: waiting for north (0 s of 50 s)")
    answered = state.history[0]["answer_seconds"]
    assert set(answered) == set(SITES)
    assert answered["east"] < 0.5 <= answered["north"]


def test_site_not_connected_is_named():
    state = rounds_with(lambda *_: 1.0, rounds=1, offline=("south",))
    assert state.history[0]["failed"] == {"south": "not connected"}


def test_site_with_a_stale_text_space_is_sent_the_servers_and_trains():
    asked = []

    def behave(site, request, texts):
        asked.append(site)
        if request.order.round == 1 and site == "west":
            texts[site] = "bank-1"
        return 1.0

    state = rounds_with(behave, rounds=2)
    assert [record["sites"] for record in state.history] == [list(SITES)] * 2
    assert asked.count("west") == 2


def test_site_that_keeps_another_text_space_is_refused_once_and_named():
    app = ClientApp()
    deliveries = []

    @app.train()
    def train(message: Message, context) -> Message:
        if context.node_config["site-dir"] == "west":
            return messages.error_reply(messages.TEXT_CODE, "this site holds text space bank-1", message)
        request = messages.unpack_train(message.content)
        return Message(messages.pack_trained(MOVING["organs"].part(request.arrays), {"loss": 1.0}), reply_to=message)

    @app.query("text")
    def text(message: Message, context) -> Message:
        deliveries.append(context.node_config["site-dir"])
        return Message(messages.pack_text_receipt("bank-1"), reply_to=message)

    contracts = {site: LabelContract(site, 2, {"liver": ClassContract(ClassKind.ORGAN, None, 2)}) for site in SITES}
    config = Config(rounds=1, **ORGANS_ONLY, server=ServerConfig(round_timeout_s=5))
    fedavg = QueryFedAvg(config.server, contracts)
    state = run_in_process(
        lambda grid, _: run_rounds(
            grid,
            fedavg.init(REFERENCE, CLASSES),
            fedavg,
            config,
            dict(zip(SITES, grid.get_node_ids(), strict=True)),
            TEXT,
        ),
        app,
        list(SITES),
    )
    assert state.history[0]["failed"] == {"west": "this site holds text space bank-1"}
    assert deliveries == ["west"]


def test_reply_without_an_update_is_a_failure():
    app = ClientApp()

    @app.train()
    def train(message: Message, context) -> Message:
        request = messages.unpack_train(message.content)
        reply = Message(messages.pack_trained(MOVING["organs"].part(request.arrays), {"loss": 1.0}), reply_to=message)
        if context.node_config["site-dir"] == "east":
            reply.content = type(reply.content)({"order": ConfigRecord()})
        return reply

    contracts = {site: LabelContract(site, 2, {"liver": ClassContract(ClassKind.ORGAN, None, 2)}) for site in SITES}
    config = Config(rounds=1, **ORGANS_ONLY)
    fedavg = QueryFedAvg(config.server, contracts)
    state = run_in_process(
        lambda grid, _: run_rounds(
            grid,
            fedavg.init(REFERENCE, CLASSES),
            fedavg,
            config,
            dict(zip(SITES, grid.get_node_ids(), strict=True)),
            TEXT,
        ),
        app,
        list(SITES),
    )
    assert "carries the records" in state.history[0]["failed"]["east"]


def test_two_rounds_and_resume_equal_four():
    def behave(site, request, _):
        return np.random.default_rng([len(site), ord(site[0]), request.order.round]).normal()

    whole = rounds_with(behave, rounds=4, momentum=0.5)
    half = rounds_with(behave, rounds=2, momentum=0.5)
    resumed = rounds_with(behave, rounds=4, momentum=0.5, state=half)
    assert all(resumed.arrays[key].tobytes() == whole.arrays[key].tobytes() for key in whole.arrays)


def test_rate_grows_with_the_root_of_the_sites_only_where_moments_are_shared():
    shared, local = (Config(server=ServerConfig(moments=kind)) for kind in ("shared", "local"))
    assert site_rate(1e-3, shared, 4) == pytest.approx(2e-3)
    assert site_rate(1e-3, local, 4) == 1e-3
