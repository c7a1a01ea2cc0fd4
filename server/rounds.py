"""The round loop: ask every site, wait no longer than the deadline, average what came, stop below quorum."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from dsm_core.config import Config
from server.exchange import Exchange, FederationError, reason_of
from strategies import messages
from strategies.query_fedavg import QueryFedAvg, ServerState, SiteFailure, SiteUpdate

if TYPE_CHECKING:
    from dsm_core.text_space import TextSpace

OnRound = Callable[[int, dict[str, Any], ServerState], None]


class RoundError(FederationError):
    """A round below quorum.

    Attributes:
        state: the state before that round.
    """

    def __init__(self, message: str, state: ServerState) -> None:
        super().__init__(message)
        self.state = state


def run_rounds(
    grid: Grid,
    state: ServerState,
    strategy: QueryFedAvg,
    config: Config,
    nodes: Mapping[str, int],
    text: TextSpace,
    on_round: OnRound | None = None,
) -> ServerState:
    """The state after `config.rounds` rounds, starting from the round that `state` has reached.

    Args:
        nodes: Flower node of each enrolled site.
        on_round: called after each round with its number, its record and the new state.

    Raises:
        RoundError: fewer than `server.quorum` of the sites gave a usable update, each named with its reason.
    """
    needed = max(1, math.ceil(config.server.quorum * len(nodes)))
    while state.round < config.rounds:
        started = time.monotonic()
        after = strategy.apply(state, ask_sites(grid, state, config, nodes, text))
        record = {**after.history[-1], "seconds": time.monotonic() - started}
        if len(record["sites"]) < needed:
            raise RoundError(_below_quorum(record, len(nodes), needed), state)
        state = replace(after, history=(*after.history[:-1], record))
        if on_round is not None:
            on_round(state.round, record, state)
    return state


def ask_sites(
    grid: Grid, state: ServerState, config: Config, nodes: Mapping[str, int], text: TextSpace
) -> Iterator[SiteUpdate | SiteFailure]:
    """One answer a site for the next round, in order of arrival.

    A site that holds no text space or another one is sent the server's once, then asked again under the same deadline.
    """
    order = messages.TrainOrder(
        round=state.round + 1,
        rounds=config.rounds,
        lr=site_rate(config, len(nodes)),
        local_steps=config.train.local_steps,
        seed=config.seed,
        share_moments=config.server.moments == "shared",
    )
    content = messages.pack_train(messages.pack_arrays(state.arrays), order, text.hash, messages.pack_config(config))
    sites = {node: site for site, node in nodes.items()}
    connected = set(grid.get_node_ids())
    yield from (SiteFailure(site, "not connected") for node, site in sites.items() if node not in connected)

    exchange = Exchange(grid, config.server.round_timeout_s, group=f"{order.round}")
    exchange.send({node: content for node in sites if node in connected}, messages.TRAIN)
    resent: set[int] = set()
    for node, reply in exchange.replies():
        if reply.has_error() and reply.error.code == messages.TEXT_CODE and node not in resent:
            resent.add(node)
            exchange.send({node: messages.pack_text(text.to_bytes(), text.hash)}, messages.TEXT)
        elif reply.has_error():
            yield SiteFailure(sites[node], reason_of(reply))
        elif reply.metadata.message_type == messages.TEXT:
            exchange.send({node: content}, messages.TRAIN)
        else:
            try:
                yield SiteUpdate(sites[node], *messages.unpack_trained(reply.content))
            except messages.MessageFault as fault:
                yield SiteFailure(sites[node], f"{fault}")
    yield from (SiteFailure(sites[node], "the order could not be sent") for node in exchange.unsent)
    yield from (
        SiteFailure(sites[node], f"no answer within {config.server.round_timeout_s:g} s") for node in exchange.awaited
    )


def site_rate(config: Config, sites: int) -> float:
    """Base learning rate at a site.

    With shared moments a round is a batch of all sites, so the rate grows with the square root of their number
    (Malladi et al. 2022, arXiv:2205.10287); with local moments each site steps for itself.
    """
    return config.train.lr * (math.sqrt(sites) if config.server.moments == "shared" else 1.0)


def _below_quorum(record: Mapping[str, Any], asked: int, needed: int) -> str:
    reasons = {site: f"refused, {reason}" for site, reason in record["refused"].items()} | record["failed"]
    return (
        f"round {record['round']}: {len(record['sites'])} of {asked} sites gave a usable update, "
        f"server.quorum wants {needed}; " + "; ".join(f"{site}: {reason}" for site, reason in sorted(reasons.items()))
    )
