"""The round loop, stage after stage: ask sites, wait until the deadline, average what came, stop below quorum."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from dsm_core.config import Config
from dsm_core.stages import MOVING, stage_of, total_rounds
from server.exchange import Exchange, FederationError, LateAnswers, reason_of, silence
from server.membership import Membership
from server.round_plan import RoundPlan, plan_round
from server.waiting import Waiting
from strategies import messages
from strategies.query_fedavg import QueryFedAvg, ServerState, SiteFailure, SiteUpdate

if TYPE_CHECKING:
    from dsm_core.text_space import TextSpace

CONNECT_POLL_S = 0.5
log = logging.getLogger(__name__)
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
    membership: Membership | None = None,
    waiting: Waiting | None = None,
) -> ServerState:
    """The state after the rounds of all stages, starting from the round that `state` has reached.

    Args:
        nodes: Flower node of each enrolled site.
        on_round: called after each round with its number, its record and the new state.
        membership: lets sites in between rounds, and says from then on who takes part; None: nobody comes in.
        waiting: is told for whom the round waits.

    Raises:
        RoundError: fewer than `server.quorum` of the sites gave a usable update, each named with its reason.
    """
    waiting, late = waiting or Waiting(), LateAnswers()
    rounds = total_rounds(config)
    while state.round < rounds:
        started, stage = time.monotonic(), stage_of(config, state.round + 1)
        if stage.round_of(state.round + 1) == 1:
            if not strategy.teachers(MOVING[stage.name]):
                log.warning("stage %s is left out: no site has labelled a class of its kind", stage.name)
                state = replace(state, round=stage.before + stage.rounds)
                continue
            state = strategy.begin_stage(state, MOVING[stage.name])
        state, plan, events = _gather_sites(grid, state, config, nodes, strategy, membership, waiting)
        if membership is not None:
            members = membership.members
            strategy, nodes, text = members.strategy, members.nodes, members.text
        answers = ask_sites(grid, state, config, nodes, text, plan, membership, waiting, late)
        after = strategy.apply(state, answers, (*plan.asked, *plan.absent), MOVING[stage.name])
        record = {**after.history[-1], "rounds": rounds, "asked": list(plan.asked), **events}
        record |= {"stage": stage.name, "stage_round": stage.round_of(after.round)}
        record |= {"answer_seconds": waiting.seconds(), "seconds": time.monotonic() - started}
        if came_late := late.collect():
            record["late"] = came_late
        if len(record["sites"]) < plan.needed:
            raise RoundError(_below_quorum(record, plan), state)
        state = replace(after, history=(*after.history[:-1], record))
        if on_round is not None:
            on_round(state.round, record, state)
    return state


def _gather_sites(
    grid: Grid,
    state: ServerState,
    config: Config,
    nodes: Mapping[str, int],
    strategy: QueryFedAvg,
    membership: Membership | None,
    waiting: Waiting,
) -> tuple[ServerState, RoundPlan, dict[str, Any]]:
    """Let in who is at the door and plan the round, among the sites that have something to teach in its stage.

    Where fewer sites are connected than the quorum wants, it waits for more, no longer than a round may take.
    """
    timeout_s, round = config.server.round_timeout_s, state.round + 1
    stage = stage_of(config, round).name
    deadline, is_waiting = time.monotonic() + timeout_s, False
    events: dict[str, Any] = {}
    while True:
        if membership is not None:
            membership.look(at_once=True)
            state, more = membership.admit(state)
            events |= {name: events.get(name, {}) | found for name, found in more.items()}
            nodes, strategy = membership.members.nodes, membership.members.strategy
        connected, teachers = set(grid.get_node_ids()), strategy.teachers(MOVING[stage])
        online = [site for site, node in nodes.items() if node in connected and site in teachers]
        plan = plan_round(config, round, teachers, online)
        if len(plan.asked) >= plan.needed or time.monotonic() >= deadline:
            return state, plan, events
        if not is_waiting:
            is_waiting = True
            waiting.begin("connecting", round, total_rounds(config), plan.absent, timeout_s, stage)
        waiting.tick()
        time.sleep(min(CONNECT_POLL_S, timeout_s))


def ask_sites(
    grid: Grid,
    state: ServerState,
    config: Config,
    nodes: Mapping[str, int],
    text: TextSpace,
    plan: RoundPlan,
    membership: Membership | None,
    waiting: Waiting,
    late: LateAnswers,
) -> Iterator[SiteUpdate | SiteFailure]:
    """One answer a site for the next round, in order of arrival.

    A site that holds no text space or another one is sent the server's once, then asked again under the same deadline.
    """
    timeout_s = config.server.round_timeout_s
    yield from (SiteFailure(site, "not connected") for site in plan.absent)
    if len(plan.asked) < plan.needed:
        yield from (SiteFailure(site, "not asked, since too few sites are connected") for site in plan.asked)
        return
    stage = stage_of(config, state.round + 1)
    order = messages.TrainOrder(
        round=state.round + 1,
        rounds=total_rounds(config),
        stage=stage.name,
        stage_round=stage.round_of(state.round + 1),
        stage_rounds=stage.rounds,
        lr=site_rate(stage.lr, config, len(plan.asked)),
        local_steps=config.train.local_steps,
        seed=config.seed,
        share_moments=config.server.moments == "shared",
    )
    content = messages.pack_train(messages.pack_arrays(state.arrays), order, text.hash, messages.pack_config(config))
    sites = {nodes[site]: site for site in plan.asked}
    waiting.begin("training", order.round, order.rounds, plan.asked, timeout_s, order.stage)
    exchange = Exchange(grid, timeout_s, group=f"{order.round}")
    exchange.send(dict.fromkeys(sites, content), messages.TRAIN)

    def on_wait() -> None:
        waiting.tick()
        if membership is not None:
            membership.look()

    def failed(node: int, reason: str) -> SiteFailure:
        waiting.answered(sites[node], reason)
        return SiteFailure(sites[node], reason)

    resent: set[int] = set()
    for node, reply in exchange.replies(on_wait):
        if reply.has_error() and reply.error.code == messages.TEXT_CODE and node not in resent:
            resent.add(node)
            exchange.send({node: messages.pack_text(text.to_bytes(), text.hash)}, messages.TEXT)
        elif reply.has_error():
            yield failed(node, reason_of(reply))
        elif reply.metadata.message_type == messages.TEXT:
            exchange.send({node: content}, messages.TRAIN)
        else:
            try:
                update = SiteUpdate(sites[node], *messages.unpack_trained(reply.content))
            except messages.MessageFault as fault:
                yield failed(node, f"{fault}")
                continue
            waiting.answered(sites[node])
            yield update
    late.expect(exchange, sites, order.round)
    yield from (failed(node, "the order could not be sent") for node in exchange.unsent)
    connected = set(grid.get_node_ids()) if exchange.awaited else set()
    yield from (SiteFailure(sites[node], silence(node in connected, timeout_s)) for node in exchange.awaited)


def site_rate(lr: float, config: Config, sites: int) -> float:
    """Base learning rate at a site, from that of the stage.

    With shared moments a round is a batch of all asked sites, so the rate grows with the square root of their number
    (Malladi et al. 2022, arXiv:2205.10287); with local moments each site steps for itself.
    """
    return lr * (math.sqrt(sites) if config.server.moments == "shared" else 1.0)


def _below_quorum(record: Mapping[str, Any], plan: RoundPlan) -> str:
    reasons = {site: f"refused, {reason}" for site, reason in record["refused"].items()} | record["failed"]
    return (
        f"round {record['round']}: {len(record['sites'])} of {len(plan.asked) + len(plan.absent)} sites gave a usable "
        f"update, server.quorum wants {plan.needed}; "
        + "; ".join(f"{site}: {reason}" for site, reason in sorted(reasons.items()))
    )
