"""What did the runs of a sweep find? One row a run, and their means over seeds with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from client.ledger_lines import LedgerFault, read_history
from simulations.reading import ReportError, read_run
from simulations.summary import Cell, mean_score
from simulations.sweep.plan import ALONE, OPEN, ROUNDS, Plan, Point
from simulations.sweep.runs import Folder

SEED = "seed"
CONFIDENCE = 0.95
DONE, FAILED, MISSING = "done", "failed", "missing"
SCORED = ("local", "foreign")  # classes that some site labels


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        swept: value of every other swept key.
        spent: largest epsilon that a site's ledger in the run folder has; None without one.
        organs, lesions, dice: mean Dice over sites and over the classes that some site labels, by kind and of all;
            lesions only where some run learns them.
        classes: mean Dice of each of these classes over sites.
        reason: why it failed.
    """

    name: str
    epsilon: float
    swept: Mapping[str, str]
    status: str
    spent: float | None = None
    organs: float | None = None
    lesions: float | None = None
    dice: float | None = None
    classes: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Interval:
    """Mean over runs that differ by their seed only; the half width of its 95 % interval, None from one run."""

    mean: float
    half: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval | None:
        """Student's t over the runs; None without any."""
        if not values:
            return None
        half = None
        if len(values) > 1:
            from scipy.stats import t

            half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(fmean(values), half, len(values))


@dataclass(frozen=True)
class Group:
    """All runs of one setting.

    Attributes:
        setting: values of the swept keys, without seed.
        classes: mean Dice of each class that some site labels.
        share: mean Dice of organs (of all classes where there is no organ) against training without privacy.
        gained: what training adds to that Dice of the start alone, against what it adds without privacy.
    """

    epsilon: float
    setting: Mapping[str, str]
    organs: Interval | None
    lesions: Interval | None
    dice: Interval | None
    classes: Mapping[str, Interval]
    spent: float | None
    share: float | None
    gained: float | None
    failed: int

    @property
    def label(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.setting.items())

    @property
    def score(self) -> Interval | None:
        """What the curve shows."""
        return self.organs or self.dice


def read_rows(folder: Folder, plan: Plan) -> list[Row]:
    """A row for every run of the plan, finished or not."""
    failures = folder.failures()
    has_lesions = plan.has_lesions
    return [_row(folder, point, failures.get(point.name, ""), has_lesions) for point in plan.points]


def _row(folder: Folder, point: Point, reason: str, has_lesions: bool) -> Row:
    if not folder.is_finished(point.name):
        return Row(point.name, point.epsilon, point.swept, FAILED if reason else MISSING, reason=reason)
    try:
        run = read_run(folder.run(point.name))
    except ReportError as error:
        return Row(point.name, point.epsilon, point.swept, FAILED, reason=f"{error}")
    try:
        spent = _spent(folder.run(point.name))
    except LedgerFault as fault:
        return Row(point.name, point.epsilon, point.swept, FAILED, reason=f"a site's ledger of this run: {fault}")
    by_kind = {kind: [name for name, of in run.kinds.items() if of == kind] for kind in ("organ", "lesion")}
    scored = None if has_lesions else by_kind["organ"]
    return Row(
        point.name, point.epsilon, point.swept, DONE, spent,
        _mean(run.cells, by_kind["organ"]), _mean(run.cells, by_kind["lesion"]) if has_lesions else None,
        _mean(run.cells, scored), _class_means(run.cells, [name for of in by_kind.values() for name in of], scored),
        sum((run.info.get("seconds") or {}).values()),
    )  # fmt: skip


def _mean(cells: Iterable[Cell], classes: Sequence[str] | None) -> float | None:
    cells = list(cells)
    found = [mean for status in SCORED if (mean := mean_score(cells, "federated", status, classes))]
    total = sum(mean.cells for mean in found)
    return sum(mean.value * mean.cells for mean in found) / total if total else None


def _class_means(cells: Iterable[Cell], classes: Sequence[str], scored: Sequence[str] | None) -> dict[str, float]:
    names = classes if scored is None else scored
    return {name: mean for name in sorted(names) if (mean := _mean(cells, [name])) is not None}


def _spent(run: Path) -> float | None:
    ledgers = sorted((run / "ledgers" / "federated").glob("*.jsonl"))
    if not ledgers:
        return None
    from client.privacy import Spending  # Opacus takes seconds to import

    return max(Spending.of(read_history(path.read_bytes())).epsilon for path in ledgers)


def group_rows(rows: Sequence[Row]) -> list[Group]:
    """Runs that differ by their seed only, together; in the order of their settings and of epsilon."""
    groups: dict[tuple[float, tuple[tuple[str, str], ...]], list[Row]] = {}
    for row in rows:
        setting = tuple((key, value) for key, value in row.swept.items() if key != SEED)
        groups.setdefault((row.epsilon, setting), []).append(row)
    open_scores, alone_scores = (
        {setting: _score(held) for (epsilon, setting), held in groups.items() if epsilon == kind}
        for kind in (OPEN, ALONE)
    )
    found = []
    for (epsilon, setting), held in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        base, start, score = _beside(open_scores, setting), _beside(alone_scores, setting), _score(held)
        found.append(
            Group(
                epsilon, dict(setting), _interval(held, "organs"), _interval(held, "lesions"), _interval(held, "dice"),
                _class_intervals(held),
                max((row.spent for row in held if row.spent is not None), default=None),
                score.mean / base.mean if score and base and base.mean > 0 else None,
                _gained(score, start, base),
                sum(row.status == FAILED for row in held),
            )
        )  # fmt: skip
    return found


def _gained(score: Interval | None, start: Interval | None, base: Interval | None) -> float | None:
    if score is None or start is None or base is None or base.mean <= start.mean:
        return None
    return (score.mean - start.mean) / (base.mean - start.mean)


def _beside(
    scores: Mapping[tuple[tuple[str, str], ...], Interval | None], setting: tuple[tuple[str, str], ...]
) -> Interval | None:
    """Those of the same setting: runs without privacy are told apart by no key of it, a start alone by no rounds."""
    for left_out in ("privacy.",), ("privacy.", *ROUNDS):
        if found := scores.get(tuple((key, value) for key, value in setting if not key.startswith(left_out))):
            return found
    return None


def _score(rows: Sequence[Row]) -> Interval | None:
    return _interval(rows, "organs") or _interval(rows, "dice")


def _class_intervals(rows: Sequence[Row]) -> dict[str, Interval]:
    names = sorted({name for row in rows for name in row.classes})
    found = {name: Interval.of([row.classes[name] for row in rows if name in row.classes]) for name in names}
    return {name: interval for name, interval in found.items() if interval}


def _interval(rows: Sequence[Row], column: str) -> Interval | None:
    return Interval.of([value for row in rows if (value := getattr(row, column)) is not None])
