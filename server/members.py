"""Who takes part in a run, and what changes when a site comes in, with its classes or after an absence?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dsm_core.data import LabelContract, contract_classes, find_conflicts
from dsm_core.text_growth import grow_text_space
from dsm_core.text_space import TextSpace, TextSpaceError
from strategies.growth import grow_state
from strategies.query_fedavg import QueryFedAvg, ServerState

EVIDENCE = "class_rows.evidence"


@dataclass(frozen=True)
class Members:
    """The sites of a run.

    Attributes:
        nodes: Flower node of each enrolled site that has connected.
        contracts: label contract of each enrolled site, also of one that has left: what it declared stays declared.
        text: the text space over the classes of all of them.
        strategy: averages by what they declared.
    """

    nodes: dict[str, int]
    contracts: dict[str, LabelContract]
    text: TextSpace
    strategy: QueryFedAvg


class TurnedAway(Exception):
    """A site that may not take part; the message says why, and what to do."""


def let_in(
    members: Members, state: ServerState, node: int, contract: LabelContract, connected: Collection[int]
) -> tuple[Members, ServerState]:
    """Members and state with one more site, or with a known site back at another node.

    A class that only the newcomer labels gets a vector and a zero row with the site's evidence; no old vector and no
    old row moves by a bit.

    Args:
        connected: nodes that are connected now.

    Raises:
        TurnedAway: another node is connected as this site, the site's contract is not the one it declared when the run
            began, or it contradicts those of other sites.
    """
    site = contract.site
    if members.nodes.get(site, node) != node and members.nodes[site] in connected:
        raise TurnedAway(f"another node is connected as site {site!r}; give each site a name of its own")
    if site in members.contracts:
        if contract != members.contracts[site]:
            raise TurnedAway(
                f"declares {_declared(contract)}; when the run began it was {_declared(members.contracts[site])}, and "
                "a contract is fixed for the run: bring the old data back, or begin a new run"
            )
        return replace(members, nodes=_sorted(members.nodes | {site: node})), state
    contracts = _sorted(members.contracts | {site: contract})
    if conflicts := find_conflicts(list(contracts.values())):
        raise TurnedAway("; ".join(conflicts))
    try:
        text = grow_text_space(members.text, contract_classes([contract]))
    except TextSpaceError as error:
        raise TurnedAway(f"{error}") from error
    state = grow_state(state, text.names)
    if EVIDENCE in state.arrays:
        state = replace(state, arrays=state.arrays | {EVIDENCE: declared_evidence(contracts, text.names)})
    nodes = _sorted(members.nodes | {site: node})
    return Members(nodes, contracts, text, members.strategy.with_contracts(contracts)), state


def declared_evidence(contracts: Mapping[str, LabelContract], classes: Sequence[str]) -> NDArray:
    """Cases of all sites that annotate each class, (K,) float32."""
    return np.array(
        [sum(c.classes[name].cases for c in contracts.values() if name in c.classes) for name in classes], np.float32
    )


def _declared(contract: LabelContract) -> str:
    classes = ", ".join(f"{name} ({held.cases})" for name, held in sorted(contract.classes.items()))
    return f"{contract.cases} cases with {classes}"


def _sorted(by_site: dict) -> dict:
    return {site: by_site[site] for site in sorted(by_site)}
