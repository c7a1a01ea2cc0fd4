"""The in-process grid behaves as Flower's: one node a site, exceptions become replies, state stays with its node."""

import threading
import time

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from server.exchange import Exchange
from simulations.grid import run_in_process


def ask(grid, nodes=None, kind="query.ping", timeout_s=5.0):
    exchange = Exchange(grid, timeout_s)
    exchange.send({node: RecordDict() for node in nodes or grid.get_node_ids()}, kind)
    return exchange, list(exchange.replies())


def echo_app(act=lambda context: None):
    app = ClientApp()

    @app.query("ping")
    def ping(message: Message, context) -> Message:
        act(context)
        count = int(context.state.config_records.get("seen", ConfigRecord({"n": 0}))["n"]) + 1
        context.state["seen"] = ConfigRecord({"n": count})
        site = context.node_config["site-dir"]
        return Message(RecordDict({"r": ConfigRecord({"site": site, "n": count})}), reply_to=message)

    return app


def test_each_node_knows_its_folder_and_keeps_its_state():
    def serve(grid, context):
        return [[dict(reply.content["r"]) for _, reply in ask(grid)[1]] for _ in range(2)]

    first, second = run_in_process(serve, echo_app(), ["a", "b", "c"], threads=2)
    assert sorted(reply["site"] for reply in first) == ["a", "b", "c"]
    assert [reply["n"] for reply in first] == [1, 1, 1]
    assert [reply["n"] for reply in second] == [2, 2, 2]


def test_exception_becomes_an_error_reply_without_its_text():
    def act(context):
        if context.node_config["site-dir"] == "b":
            raise RuntimeError("/data/patient-17.nii.gz")

    replies = run_in_process(lambda grid, _: ask(grid)[1], echo_app(act), ["a", "b"])
    errors = [reply.error.reason for _, reply in replies if reply.has_error()]
    assert errors == ["RuntimeError in the site's app"]


def test_threads_work_side_by_side_and_each_uses_one_core():
    meet, cores = threading.Barrier(2, timeout=5), []

    def act(context):
        meet.wait()
        cores.append(torch.get_num_threads())

    replies = run_in_process(lambda grid, _: ask(grid)[1], echo_app(act), ["a", "b"], threads=2)
    assert not any(reply.has_error() for _, reply in replies)
    assert cores == [1, 1]


def test_node_handles_one_message_at_a_time():
    inside, most = [], []

    def act(context):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    def serve(grid, context):
        node = next(iter(grid.get_node_ids()))
        exchange = Exchange(grid, 5.0)
        for _ in range(4):
            exchange.send({node: RecordDict()}, "query.ping")
        return len(list(exchange.replies()))

    assert run_in_process(serve, echo_app(act), ["a"], threads=4) == 4
    assert max(most) == 1


def test_silent_node_is_left_behind_at_the_deadline():
    def act(context):
        time.sleep(1.0 if context.node_config["site-dir"] == "slow" else 0)

    def serve(grid, context):
        started = time.monotonic()
        exchange, replies = ask(grid, timeout_s=0.2)
        return len(replies), len(exchange.awaited), time.monotonic() - started

    count, awaited, seconds = run_in_process(serve, echo_app(act), ["fast", "slow"], threads=2)
    assert (count, awaited) == (1, 1)
    assert seconds < 0.9


def test_unknown_node_is_unsent():
    exchange, replies = run_in_process(lambda grid, _: ask(grid, nodes=[99]), echo_app(), ["a"])
    assert replies == []
    assert exchange.unsent == {99}


def test_flowers_own_server_app_runs_and_failure_passes_through():
    app, seen = ServerApp(), []

    @app.main()
    def main(grid, context) -> None:
        seen.append((context.run_config["overrides"], len(ask(grid)[1])))
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run_in_process(app, echo_app(), ["a", "b"], {"overrides": "rounds=3"})
    assert seen == [("rounds=3", 2)]


def test_flowers_identity_is_put_back():
    before = TaskIdentity._run_id
    run_in_process(lambda grid, _: ask(grid)[1], echo_app(), ["a"])
    assert TaskIdentity._run_id == before
