"""What a run starts from: sites enrolled, text space built from their contracts, first model, strategy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from dsm_core.classes import ClassInfo
from dsm_core.config import Config
from dsm_core.data import LabelContract, contract_classes
from dsm_core.model import DSM, build_model
from dsm_core.stages import total_rounds
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace, TextSpaceError
from server.enrolment import deliver_text, enrol, node_labels, wait_for_sites
from server.members import EVIDENCE, Members, declared_evidence
from server.membership import Membership
from server.rounds import OnRound, run_rounds
from server.start import read_start, take_over
from server.state_file import SavedState
from server.state_store import StateStore
from server.waiting import Waiting
from strategies.averaging import MOMENT
from strategies.growth import grow_state
from strategies.query_fedavg import QueryFedAvg, ServerState

log = logging.getLogger(__name__)

Further = Callable[[ServerState], dict[str, dict[str, NDArray]]]


@dataclass
class Federation:
    """A coordinator between two rounds.

    Attributes:
        membership: who takes part now, and who comes in.
        model: DSM of the run's size; `model_of` fills in a state's tensors.
        state: the state before round 1.
    """

    config: Config
    membership: Membership
    model: DSM
    state: ServerState

    @property
    def nodes(self) -> dict[str, int]:
        """Flower node of each site that has connected."""
        return self.membership.members.nodes

    @property
    def contracts(self) -> dict[str, LabelContract]:
        """Label contract of each site."""
        return self.membership.members.contracts

    @property
    def text(self) -> TextSpace:
        """The text space, over the classes of all sites that have joined so far."""
        return self.membership.members.text

    @property
    def strategy(self) -> QueryFedAvg:
        """The averaging rule, with what the sites declared."""
        return self.membership.members.strategy

    def run(
        self,
        grid: Grid,
        on_round: OnRound | None = None,
        state: ServerState | None = None,
        store: StateStore | None = None,
        waiting: Waiting | None = None,
        further: Further = lambda state: {},
    ) -> ServerState:
        """The state after the last round, from the beginning or from a state reached before.

        Args:
            store: keeps the state after every round, so that a run that was stopped can go on.
            waiting: is told for whom a round waits.
            further: tensors to be kept beside a state.

        Raises:
            RoundError: a round below quorum.
            StateError: a state could not be kept.
        """
        waiting = waiting or Waiting()

        def keep(round: int, record: dict[str, Any], reached: ServerState) -> None:
            if on_round is not None:
                on_round(round, record, reached)
            if store is not None:
                store.keep(SavedState(reached, self.contracts, self.text, further(reached)))

        start, members = self.state if state is None else state, self.membership.members
        final = run_rounds(
            grid, start, members.strategy, self.config, members.nodes, members.text, keep, self.membership, waiting
        )
        waiting.end("done")
        return final

    def model_of(self, state: ServerState) -> DSM:
        """The global model in a state, ready to predict; one object, filled anew at every call.

        Classes that joined after the state was reached have zero rows in it.
        """
        if self.model.names != self.text.names:
            self.model = build_model(self.config.model, self.text)
        arrays = grow_state(state, self.text.names).arrays
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if MOMENT not in name}
        self.model.load_state_dict(tensors)
        return self.model.eval()


def open_federation(
    grid: Grid,
    config: Config,
    sites: int,
    classes: Iterable[ClassInfo] = (),
    connect_timeout_s: float = 120.0,
    saved: SavedState | None = None,
    waiting: Waiting | None = None,
    names: Callable[[], Mapping[int, str]] | None = None,
    publish: Callable[[TextSpace], None] = lambda text: None,
) -> Federation:
    """Wait for the sites, enrol them, and send them the text space.

    Args:
        sites: how many are wanted at the beginning of a run.
        classes: further classes of the text space, labelled at no site.
        saved: a state to go on from: its contracts and its text space hold, and a site whose contract has changed
            since is turned away. Sites that do not come back in time are missing, and the quorum decides.
        waiting: is told that sites are awaited.
        names: the site that each node is registered as by now, see `enrol`; None where nobody is registered.
        publish: is given the text space, and every one that it grows into, before a round trains on it.

    Raises:
        FederationError: too few sites, or one that cannot enrol.
        ContractConflict: label contracts that contradict each other.
        ConfigError: `config.start` cannot be started from.
    """
    waiting, start = waiting or Waiting(), read_start(config)
    if saved is None:
        waiting.begin("connecting", 0, total_rounds(config), [], connect_timeout_s)
        nodes = wait_for_sites(grid, sites, connect_timeout_s, waiting.tick)
        members = _first_members(grid, config, nodes, classes, waiting, names() if names else None)
    else:
        members = Members(
            {}, saved.contracts, _with_encoder(saved.text, config), QueryFedAvg(config.server, saved.contracts)
        )
    publish(members.text)
    membership = Membership(grid, config, members, names, publish)
    if saved is not None:
        waiting.begin("connecting", saved.state.round, total_rounds(config), members.contracts, connect_timeout_s)
        membership.reconnect(connect_timeout_s, waiting.tick)
    torch.manual_seed(config.seed)
    model = build_model(config.model, members.text)
    if start is not None:
        take_over(model, start)
    arrays = first_arrays(model, members.contracts)
    return Federation(config, membership, model, members.strategy.init(arrays, members.text.names))


def _first_members(
    grid: Grid,
    config: Config,
    nodes: list[int],
    classes: Iterable[ClassInfo],
    waiting: Waiting,
    names: Mapping[int, str] | None,
) -> Members:
    timeout_s = config.server.round_timeout_s
    waiting.begin("enrolling", 0, total_rounds(config), node_labels(nodes, names).values(), timeout_s)
    enrolment = enrol(grid, nodes, timeout_s, config.data.held_out, waiting.tick, names, waiting.answered)
    labelled = {info.name: info for info in contract_classes(list(enrolment.contracts.values()))}
    text = build_text_space(({info.name: info for info in classes} | labelled).values(), config.text)
    for site, reason in deliver_text(grid, enrolment.nodes, text, timeout_s).items():
        log.warning("%s does not hold the text space yet: %s; it is sent again in round 1", site, reason)
    return Members(enrolment.nodes, enrolment.contracts, text, QueryFedAvg(config.server, enrolment.contracts))


def _with_encoder(text: TextSpace, config: Config) -> TextSpace:
    """The text space with its encoder, where that is at hand: without it, only a class that the bank knows can join."""
    if text.phrase_encoder is not None:
        return text
    try:
        return text.with_encoder(config.text)
    except TextSpaceError as error:
        log.warning("no site with a class that the text space does not hold can join: %s", error)
        return text


def first_arrays(model: DSM, contracts: Mapping[str, LabelContract]) -> dict[str, NDArray]:
    """The model's state dict as numpy arrays, the evidence of each class row filled in from the contracts."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    arrays[EVIDENCE][:] = declared_evidence(contracts, model.names)
    return arrays
