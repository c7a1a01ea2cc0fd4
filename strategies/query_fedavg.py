"""Query-aware federated averaging: class rows by evidence, shared tensors by a site weight.

FedAvg (McMahan et al. 2017, arXiv:1602.05629) for the shared tensors; a class row is averaged over the sites that label
its class, so a site without kidney masks never dilutes the kidney row. In a stage only a part of the tensors travels
back and moves. What must survive a crash is in `ServerState`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsm_core.config import ServerConfig
from dsm_core.stages import EVERYTHING, Moving
from strategies import averaging, messages
from strategies.refusal import UpdateRefused, validate_reference, validate_update

if TYPE_CHECKING:
    from dsm_core.data import LabelContract


@dataclass(frozen=True)
class SiteUpdate:
    """What a site sent after its local training."""

    site: str
    arrays: dict[str, NDArray]
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteFailure:
    """A site that gave no update in this round, and why."""

    site: str
    reason: str


@dataclass(frozen=True)
class ServerState:
    """The whole state of the server between two rounds.

    Attributes:
        arrays: global tensors by name.
        classes: names along axis 0 of the class rows.
        round: rounds done.
        momentum: velocity of the shared tensors, float64; empty without server momentum.
        history: one JSON-able record a round.
    """

    arrays: dict[str, NDArray]
    classes: tuple[str, ...]
    round: int = 0
    momentum: dict[str, NDArray] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()


class QueryFedAvg:
    """`init` and `apply`, as in FedJAX: state and answers in, next state out."""

    def __init__(self, config: ServerConfig, contracts: Mapping[str, LabelContract]) -> None:
        self.config = config
        self.cases = {site: contracts[site].cases for site in sorted(contracts)}
        self.evidence = {
            site: {name: labelled.cases for name, labelled in contracts[site].classes.items()} for site in self.cases
        }
        self.kinds = {site: {name: held.kind for name, held in contracts[site].classes.items()} for site in self.cases}
        self.weights = site_weights(config.site_weight, self.cases, self.evidence)

    def with_contracts(self, contracts: Mapping[str, LabelContract]) -> QueryFedAvg:
        """The same rule for other sites."""
        return type(self)(self.config, contracts)

    def init(self, arrays: Mapping[str, NDArray], classes: Sequence[str]) -> ServerState:
        """State before round 1.

        Raises:
            ValueError: a tensor is not floating, class rows do not match the classes, or a site labels a class that
                has no row.
        """
        validate_reference(arrays, len(classes))
        rowless = sorted({name for held in self.evidence.values() for name in held} - set(classes))
        if rowless:
            raise ValueError(f"classes {rowless} are labelled at a site but have no row; put them in the text space")
        return ServerState({key: arrays[key] for key in sorted(arrays)}, tuple(classes))

    def teachers(self, moving: Moving) -> set[str]:
        """The sites that have labelled something of what a stage trains; the others have nothing to say in it."""
        return {site for site, held in self.kinds.items() if moving.is_taught_by(held.values())}

    def begin_stage(self, state: ServerState, moving: Moving) -> ServerState:
        """The state before a stage: the moments of its tensors at zero, those of an earlier stage gone.

        Moments that were carried on would go on moving rows and tensors that the stage does not train.
        """
        arrays = {key: array for key, array in state.arrays.items() if averaging.MOMENT not in key}
        if self.config.moments == "shared":
            arrays |= {
                averaging.moment_key(key, kind): np.zeros_like(array)
                for key, array in moving.part(arrays).items()
                for kind in averaging.MOMENT_KINDS
            }
        return replace(state, arrays={key: arrays[key] for key in sorted(arrays)}, momentum={})

    def apply(
        self,
        state: ServerState,
        answers: Iterable[SiteUpdate | SiteFailure],
        sites: Sequence[str] | None = None,
        moving: Moving = EVERYTHING,
    ) -> ServerState:
        """State after one more round.

        Answers are taken as they arrive and added in the order of the sites' names, so the order of arrival does not
        change a bit. An answer waits only while a site named before it is awaited. Refusals, failures and metrics are
        in the last record of `history`; a round without any usable update leaves every tensor as it was.

        Args:
            sites: those that take part in this round; None: all.
            moving: what trains in this round; an answer holds these tensors and no other.
        """
        config, reference = self.config, moving.part(state.arrays)
        sums = averaging.empty_sums(reference, len(state.classes), config.class_rows)
        accepted: dict[str, dict[str, Any]] = {}
        refused: dict[str, str] = {}
        failed: dict[str, str] = {}
        for answer in in_site_order(answers, sorted(self.weights if sites is None else sites)):
            if isinstance(answer, SiteFailure):
                failed[answer.site] = answer.reason
                continue
            try:
                validate_update(answer.site, answer.arrays, reference, config.max_update_norm)
                _validate_loss(answer)
            except UpdateRefused as refusal:
                refused[answer.site] = refusal.reason
                continue
            evidence = self._evidence_rows(answer.site, state.classes)
            averaging.add_update(sums, reference, answer.arrays, self.weights[answer.site], evidence)
            accepted[answer.site] = answer.metrics

        delta = averaging.shared_delta(sums, reference)
        step = config.server_lr
        if config.server_step == "fedexp":
            step = averaging.fedexp_step(sums, delta, upper=config.server_lr)
        arrays, momentum = dict(state.arrays), state.momentum
        if accepted:
            shared, momentum = averaging.step_shared(reference, delta, step, config.momentum, state.momentum)
            rows = {
                key: averaging.average_rows(
                    total, sums.evidence, reference[key], 1.0 if averaging.MOMENT in key else config.row_step
                )
                for key, total in sums.rows.items()
            }
            arrays |= averaging.keep_rows(shared | rows, reference, self._moving_rows(state.classes, moving))
        record = {
            "round": state.round + 1,
            "sites": sorted(accepted),
            "refused": refused,
            "failed": failed,
            "server_step": step,
            **self._pooled_loss(accepted),
        }
        return replace(state, arrays=arrays, momentum=momentum, round=state.round + 1, history=(*state.history, record))

    def _evidence_rows(self, site: str, classes: Sequence[str]) -> NDArray:
        return np.array([self.evidence[site].get(name, 0) for name in classes], np.float64)

    def _moving_rows(self, classes: Sequence[str], moving: Moving) -> NDArray:
        """Of each class, whether its row may move, (K,); the kind of a class that no site labels is not known here."""
        kinds = {name: kind for held in self.kinds.values() for name, kind in held.items()}
        return np.array([moving is EVERYTHING or kinds.get(name) in moving.kinds for name in classes], bool)

    def _pooled_loss(self, accepted: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Mean of the sites' losses by cases; a loss that is not finite counts nowhere."""
        losses = {
            site: metrics[messages.LOSS]
            for site, metrics in accepted.items()
            if np.isfinite(metrics.get(messages.LOSS, np.nan))
        }
        seconds = {site: metrics[messages.SECONDS] for site, metrics in accepted.items() if messages.SECONDS in metrics}
        cases = sum(self.cases[site] for site in losses)
        mean = sum(self.cases[site] * loss for site, loss in losses.items()) / cases if cases else None
        return {"loss": mean, "site_losses": losses, "site_seconds": seconds}


def site_weights(kind: str, cases: Mapping[str, int], evidence: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Weight w_i of each site for the shared tensors.

    Args:
        kind: "cases" = its cases; "equal" = 1; "exclusive" = 1 + the number of classes labelled at no other site, so
            that a small site is not drowned when it alone holds a class.
    """
    if kind == "cases":
        return {site: float(count) for site, count in cases.items()}
    if kind == "equal":
        return dict.fromkeys(cases, 1.0)
    held = {site: {name for name, count in evidence[site].items() if count > 0} for site in cases}
    return {
        site: 1.0 + len(held[site] - set().union(*(held[other] for other in held if other != site))) for site in cases
    }


def in_site_order(
    answers: Iterable[SiteUpdate | SiteFailure], sites: Sequence[str]
) -> Iterator[SiteUpdate | SiteFailure]:
    """The answers in the order of `sites`, each released as soon as all sites before it have answered or failed."""
    held: dict[str, SiteUpdate | SiteFailure] = {}
    awaited = list(sites)
    for answer in answers:
        held[answer.site] = answer
        while awaited and awaited[0] in held:
            yield held.pop(awaited.pop(0))
    yield from (held[site] for site in awaited if site in held)


def _validate_loss(answer: SiteUpdate) -> None:
    loss = answer.metrics.get(messages.LOSS, 0.0)
    if not isinstance(loss, int | float):
        raise UpdateRefused(answer.site, f"{messages.LOSS} is a {type(loss).__name__}, wanted a number")
