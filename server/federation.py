"""What a run starts from: sites enrolled, text space built from their contracts, first model, strategy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from dsm_core.classes import ClassInfo
from dsm_core.config import Config
from dsm_core.data import LabelContract, contract_classes
from dsm_core.model import DSM, build_model
from dsm_core.text_space import TextSpace, build_text_space
from server.enrolment import deliver_text, enrol, wait_for_sites
from server.rounds import OnRound, run_rounds
from strategies.averaging import MOMENT
from strategies.query_fedavg import QueryFedAvg, ServerState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Federation:
    """Everything that stays fixed over the rounds.

    Attributes:
        nodes: Flower node of each site.
        contracts: label contract of each site.
        model: DSM of the run's size; `model_of` fills in a state's tensors.
        state: the state before round 1.
    """

    config: Config
    nodes: dict[str, int]
    contracts: dict[str, LabelContract]
    text: TextSpace
    model: DSM
    strategy: QueryFedAvg
    state: ServerState

    def run(self, grid: Grid, on_round: OnRound | None = None, state: ServerState | None = None) -> ServerState:
        """The state after the last round, from the beginning or from a state reached before.

        Raises:
            RoundError: a round below quorum.
        """
        start = self.state if state is None else state
        return run_rounds(grid, start, self.strategy, self.config, self.nodes, self.text, on_round)

    def model_of(self, state: ServerState) -> DSM:
        """The global model in a state, ready to predict; one object, filled anew at every call."""
        tensors = {name: torch.from_numpy(array) for name, array in state.arrays.items() if MOMENT not in name}
        self.model.load_state_dict(tensors)
        return self.model.eval()


def open_federation(
    grid: Grid,
    config: Config,
    sites: int,
    classes: Iterable[ClassInfo] = (),
    connect_timeout_s: float = 120.0,
    names: Mapping[int, str] | None = None,
) -> Federation:
    """Wait for the sites, enrol them, and send them the text space.

    Args:
        sites: how many are wanted.
        classes: further classes of the text space, labelled at no site.
        names: the site that each node was registered as, see `enrol`.

    Raises:
        FederationError: too few sites, or one that cannot enrol.
        ContractConflict: label contracts that contradict each other.
    """
    nodes = wait_for_sites(grid, sites, connect_timeout_s)
    enrolment = enrol(grid, nodes, config.server.round_timeout_s, names)
    labelled = {info.name: info for info in contract_classes(list(enrolment.contracts.values()))}
    text = build_text_space(({info.name: info for info in classes} | labelled).values(), config.text)
    for site, reason in deliver_text(grid, enrolment.nodes, text, config.server.round_timeout_s).items():
        log.warning("%s does not hold the text space yet: %s; it is sent again in round 1", site, reason)
    torch.manual_seed(config.seed)
    model = build_model(config.model, text)
    strategy = QueryFedAvg(config.server, enrolment.contracts)
    arrays = first_arrays(model, enrolment.contracts)
    if config.server.moments == "shared":
        arrays |= first_moments(model)
    state = strategy.init(arrays, text.names)
    return Federation(config, enrolment.nodes, enrolment.contracts, text, model, strategy, state)


def first_arrays(model: DSM, contracts: Mapping[str, LabelContract]) -> dict[str, NDArray]:
    """The model's state dict as numpy arrays, the evidence of each class row filled in from the contracts."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    evidence = arrays["class_rows.evidence"]
    for row, name in enumerate(model.names):
        evidence[row] = sum(c.classes[name].cases for c in contracts.values() if name in c.classes)
    return arrays


def first_moments(model: DSM) -> dict[str, NDArray]:
    """AdamW's moments before the first step: zeros beside every trained tensor."""
    trained = {key: tensor for key, tensor in model.state_dict(keep_vars=True).items() if tensor.requires_grad}
    return {
        f"{key}{MOMENT}{kind}": np.zeros(tensor.shape, np.float32)
        for kind in ("exp_avg", "exp_avg_sq")
        for key, tensor in trained.items()
    }
