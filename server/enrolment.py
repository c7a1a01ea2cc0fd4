"""Who takes part: sites found, label contracts gathered and checked, text space delivered; all before round 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Message
from flwr.serverapp import Grid

from dsm_core.data import LabelContract, find_conflicts
from server.exchange import Exchange, FederationError, reason_of, silence
from strategies import messages

if TYPE_CHECKING:
    from dsm_core.text_space import TextSpace


class ContractConflict(FederationError):
    """Label contracts that cannot be true together.

    Attributes:
        conflicts: every conflict, both sites named.
    """

    def __init__(self, conflicts: Sequence[str]) -> None:
        super().__init__(
            f"{len(conflicts)} conflicts between label contracts, correct dataset.json at the sites:\n  "
            + "\n  ".join(conflicts)
        )
        self.conflicts = tuple(conflicts)


@dataclass(frozen=True)
class Enrolment:
    """The sites of a run.

    Attributes:
        nodes: Flower node of each site, sites sorted by name.
        contracts: label contract of each site.
    """

    nodes: dict[str, int]
    contracts: dict[str, LabelContract]


def wait_for_sites(grid: Grid, minimum: int, timeout_s: float, on_wait: Callable[[], None] = lambda: None) -> list[int]:
    """Nodes connected, as soon as there are at least `minimum`.

    Args:
        on_wait: called again and again while some are awaited.

    Raises:
        FederationError: fewer after `timeout_s` seconds.
    """
    if minimum < 1:
        raise FederationError(f"a federation wants at least 1 site, found {minimum}")
    deadline = time.monotonic() + timeout_s
    while len(nodes := sorted(grid.get_node_ids())) < minimum:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise FederationError(
                f"{len(nodes)} of {minimum} sites connected within {timeout_s:g} s; start the others, "
                f"check that they reach the server, or ask for fewer sites"
            )
        on_wait()
        time.sleep(min(0.5, left_s))
    return nodes


def enrol(
    grid: Grid,
    nodes: Sequence[int],
    timeout_s: float,
    held_out: float = 0.0,
    on_wait: Callable[[], None] = lambda: None,
    names: Mapping[int, str] | None = None,
    on_answer: Callable[[str, str], None] = lambda who, reason: None,
) -> Enrolment:
    """The label contract of every node, checked against each other.

    Args:
        held_out: share of its cases that a site keeps out of training, and out of its contract.
        on_wait: called again and again while an answer is awaited.
        names: the site that each node was registered as, where that is known: no site speaks for another then.
        on_answer: called with every node's label and why its answer is none; an empty reason for a contract.

    Raises:
        FederationError: a node does not answer, answers with an error, or two nodes give one site name; all at once.
        ContractConflict: the contracts contradict each other; all conflicts at once.
    """
    exchange = Exchange(grid, timeout_s, group="enrol")
    exchange.send({node: messages.pack_enrol(held_out) for node in nodes}, messages.ENROL)
    who = node_labels(nodes, names)
    found: dict[str, tuple[int, LabelContract]] = {}
    faults = []
    for node, reply in exchange.replies(on_wait):
        contract = read_contract(reply)
        on_answer(who[node], contract if isinstance(contract, str) else "")
        if isinstance(contract, str):
            faults.append(f"{who[node]}: {contract}")
            continue
        if names and contract.site != names.get(node):
            faults.append(f"node {node} is registered as site {names.get(node)!r} and calls itself {contract.site!r}")
        if contract.site in found:
            faults.append(f"nodes {found[contract.site][0]} and {node} both call themselves site {contract.site!r}")
        found[contract.site] = (node, contract)
    connected = set(grid.get_node_ids()) if exchange.awaited else set()
    faults += [f"{who[node]}: {silence(node in connected, timeout_s)}" for node in sorted(exchange.awaited)]
    faults += [f"{who[node]}: the message could not be sent" for node in sorted(exchange.unsent)]
    if faults or not found:
        raise FederationError("enrolment failed:\n  " + "\n  ".join(faults or ["no site"]))
    enrolment = Enrolment(
        nodes={site: found[site][0] for site in sorted(found)},
        contracts={site: found[site][1] for site in sorted(found)},
    )
    if conflicts := find_conflicts(list(enrolment.contracts.values())):
        raise ContractConflict(conflicts)
    return enrolment


def node_labels(nodes: Sequence[int], names: Mapping[int, str] | None) -> dict[int, str]:
    """What a person calls each node: the site that it was registered as, or its number where that is not known."""
    return {node: (names or {}).get(node, f"node {node}") for node in nodes}


def read_contract(reply: Message) -> LabelContract | str:
    """The label contract of an answer, or why there is none."""
    if reply.has_error():
        return reason_of(reply)
    try:
        return LabelContract.from_dict(messages.unpack_contract(reply.content))
    except ValueError as error:
        return f"{error}"


def deliver_text(grid: Grid, nodes: Mapping[str, int], text: TextSpace, timeout_s: float) -> dict[str, str]:
    """Send every site the text space; returns the sites that do not hold it now, with the reason."""
    exchange = Exchange(grid, timeout_s, group="text")
    content = messages.pack_text(text.to_bytes(), text.hash)
    exchange.send(dict.fromkeys(nodes.values(), content), messages.TEXT)
    missing = dict.fromkeys(nodes.values(), f"no answer within {timeout_s:g} s")
    for node, reply in exchange.replies():
        if reply.has_error():
            missing[node] = reason_of(reply)
        elif (held := messages.unpack_text_receipt(reply.content)) != text.hash:
            missing[node] = f"holds text space {held[:12]}, wanted {text.hash[:12]}"
        else:
            del missing[node]
    return {site: missing[node] for site, node in nodes.items() if node in missing}
