"""What do the cells of a site x class matrix add up to? Means by status, shares, and what each site gained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

STATUSES = ("local", "foreign", "unseen")
METHODS = ("federated", "local", "pooled", "fedavg")
KINDS = ("organ", "lesion")


@dataclass(frozen=True)
class Cell:
    """One class scored on one site's held-out cases; scores are None where no held-out case holds the class."""

    method: str
    site: str
    class_name: str
    status: str
    dice: float | None
    nsd: float | None
    cases: int
    false_positive_ml: float | None = None


@dataclass(frozen=True)
class Mean:
    """A mean over cells and how many cells it is over."""

    value: float
    cells: int


@dataclass(frozen=True)
class Gain:
    """One class at one site: the shared model's Dice beside what the site reaches alone."""

    class_name: str
    kind: str
    together: float | None
    alone: float | None


@dataclass(frozen=True)
class SiteGains:
    """What the shared model gives one site."""

    site: str
    foreign: tuple[Gain, ...]
    unseen: tuple[Gain, ...]
    own_together: Mean | None
    own_alone: Mean | None

    def found(self, threshold: float) -> int:
        """Foreign classes whose Dice reaches the threshold."""
        return sum(gain.together is not None and gain.together >= threshold for gain in self.foreign)


@dataclass(frozen=True)
class ClassSummary:
    """One class over all sites, under one method."""

    class_name: str
    kind: str
    labelled_at: tuple[str, ...]
    means: Mapping[str, Mean | None] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Foreign Dice as a share of local Dice."""
        local, foreign = self.means.get("local"), self.means.get("foreign")
        return foreign.value / local.value if local and foreign and local.value > 0 else None


def methods_of(cells: Iterable[Cell]) -> list[str]:
    """Methods in reading order: the federated one first, then what it is compared with."""
    found = {cell.method for cell in cells}
    return [m for m in METHODS if m in found] + sorted(found - set(METHODS))


def ordered_classes(cells: Iterable[Cell], kinds: Mapping[str, str]) -> list[str]:
    """Class names, organs before lesions, by name inside each."""
    return sorted({cell.class_name for cell in cells}, key=lambda name: (KINDS.index(kinds[name]), name))


def mean_score(
    cells: Iterable[Cell], method: str, status: str, classes: Iterable[str] | None = None, metric: str = "dice"
) -> Mean | None:
    """Mean over the scored cells of a method and a status; None when there is none."""
    wanted = None if classes is None else set(classes)
    scores = [
        score
        for cell in cells
        if cell.method == method and cell.status == status and (wanted is None or cell.class_name in wanted)
        if (score := getattr(cell, metric)) is not None
    ]
    return Mean(fmean(scores), len(scores)) if scores else None


def class_summaries(cells: Sequence[Cell], method: str, kinds: Mapping[str, str]) -> list[ClassSummary]:
    """Every class, organs first, with the sites that label it and its mean Dice by status."""
    summaries = []
    for name in ordered_classes(cells, kinds):
        labelled = sorted({cell.site for cell in cells if cell.class_name == name and cell.status == "local"})
        means = {status: mean_score(cells, method, status, [name]) for status in STATUSES}
        summaries.append(ClassSummary(name, kinds[name], tuple(labelled), means))
    return summaries


def foreign_share(summaries: Iterable[ClassSummary], kind: str | None = None) -> float | None:
    """Foreign Dice over local Dice, each averaged over the classes of a kind that have both; None without any."""
    pairs = [
        (local.value, foreign.value)
        for summary in summaries
        if kind in (None, summary.kind)
        if (local := summary.means.get("local")) and (foreign := summary.means.get("foreign"))
    ]
    total = sum(local for local, _ in pairs)
    return sum(foreign for _, foreign in pairs) / total if total > 0 else None


def site_gains(cells: Sequence[Cell], together: str, alone: str, kinds: Mapping[str, str]) -> list[SiteGains]:
    """Per site, the classes that it never labelled under the shared model and alone, the best first."""
    dice = {(cell.method, cell.site, cell.class_name): cell.dice for cell in cells}
    gains = []
    for site in sorted({cell.site for cell in cells if cell.method == together}):
        here = [cell for cell in cells if cell.site == site]
        by_status: dict[str, tuple[Gain, ...]] = {}
        for status in ("foreign", "unseen"):
            found = [
                Gain(cell.class_name, kinds[cell.class_name], cell.dice, dice.get((alone, site, cell.class_name)))
                for cell in here
                if cell.method == together and cell.status == status
            ]
            by_status[status] = tuple(sorted(found, key=lambda g: (KINDS.index(g.kind), -(g.together or 0.0))))
        own = mean_score(here, together, "local"), mean_score(here, alone, "local")
        gains.append(SiteGains(site, by_status["foreign"], by_status["unseen"], *own))
    return gains
