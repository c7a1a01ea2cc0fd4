"""Sites that answer a round as a test says: with a change to add, with an error, or not at all."""

from types import SimpleNamespace

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp

from dsm_core.classes import ClassKind
from dsm_core.config import Config, PriorConfig, ServerConfig, TumorsConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.stages import MOVING
from server.rounds import run_rounds
from simulations.grid import run_in_process
from strategies import messages
from strategies.averaging import MOMENT_KINDS
from strategies.query_fedavg import QueryFedAvg

CLASSES = ("kidney", "liver")
REFERENCE = {"class_rows.bias.weight": np.zeros((2, 3), np.float32), "encoder.weight": np.zeros(4, np.float32)}
ORGANS_ONLY = {"prior": PriorConfig(rounds=0), "tumors": TumorsConfig(rounds=0)}
TEXT = SimpleNamespace(hash="bank-2", to_bytes=lambda: b"vectors")
SITES = ("east", "north", "south", "west")


class Stopped(Exception):
    pass


def rounds_with(
    behave, rounds=2, sites=SITES, state=None, on_round=None, offline=(), waiting=None, contracts=None, start=REFERENCE,
    threads=2, stop=None, prior=ORGANS_ONLY["prior"], tumors=ORGANS_ONLY["tumors"], **server,
):  # fmt: skip
    """Run rounds in which site `i` answers `behave(site, request)`: an array to add, or an exception to send."""
    app = ClientApp()
    texts = dict.fromkeys(sites, TEXT.hash)

    @app.train()
    def train(message: Message, context) -> Message:
        site = context.node_config["site-dir"]
        request = messages.unpack_train(message.content)
        if texts[site] != request.text_hash:
            return messages.error_reply(messages.TEXT_CODE, "another text space", message)
        change = behave(site, request, texts)
        if isinstance(change, str):
            return messages.error_reply(messages.FAULT_CODE, change, message)
        moving = MOVING[request.order.stage].part(request.arrays)
        square = MOMENT_KINDS[1]  # a mean of squares, which no site sends negative
        arrays = {n: array + np.float32(change) ** (2 if n.endswith(square) else 1) for n, array in moving.items()}
        return Message(messages.pack_trained(arrays, {"loss": 1.0, "num-cases": 2}), reply_to=message)

    @app.query("text")
    def text(message: Message, context) -> Message:
        texts[context.node_config["site-dir"]] = messages.unpack_text(message.content)[1]
        return Message(messages.pack_text_receipt(TEXT.hash), reply_to=message)

    contracts = contracts or {
        site: LabelContract(site, 2, {"liver": ClassContract(ClassKind.ORGAN, None, 2)}) for site in sites
    }
    config = Config(rounds=rounds, prior=prior, tumors=tumors, server=ServerConfig(**{"round_timeout_s": 5, **server}))
    reached = []

    def note(round, record, after):
        reached.append(after)
        if on_round is not None:
            on_round(round, record, after)
        if round == stop:
            raise Stopped

    fedavg = QueryFedAvg(config.server, contracts)

    def serve(grid, context):
        nodes = dict(zip(sites, grid.get_node_ids(), strict=True))
        gone = offline if callable(offline) else lambda: offline
        grid.get_node_ids = lambda: [node for site, node in nodes.items() if site not in gone()]
        first = fedavg.init(start, CLASSES) if state is None else state
        try:
            return run_rounds(grid, first, fedavg, config, nodes, TEXT, note, waiting=waiting)
        except Stopped:
            return reached[-1]

    return run_in_process(serve, app, list(sites), threads=threads)
