"""What did the runs of a sweep find? One row a run, and their means over seeds with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from simulations.reading import ReportError, read_run
from simulations.results import write_atomically
from simulations.summary import Cell, mean_score
from simulations.sweep.audited import audited_bounds
from simulations.sweep.plan import ALONE, OPEN, Plan, Point
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
        share: mean Dice of organs (of all classes where there is no organ) against training without privacy.
        gained: what training adds to that Dice of the start alone, against what it adds without privacy.
    """

    epsilon: float
    setting: Mapping[str, str]
    organs: Interval | None
    lesions: Interval | None
    dice: Interval | None
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
    by_kind = {kind: [name for name, of in run.kinds.items() if of == kind] for kind in ("organ", "lesion")}
    scored = None if has_lesions else by_kind["organ"]
    return Row(
        point.name, point.epsilon, point.swept, DONE, _spent(folder.run(point.name)),
        _mean(run.cells, by_kind["organ"]), _mean(run.cells, by_kind["lesion"]) if has_lesions else None,
        _mean(run.cells, scored),
        sum((run.info.get("seconds") or {}).values()),
    )  # fmt: skip


def _mean(cells: Iterable[Cell], classes: Sequence[str] | None) -> float | None:
    cells = list(cells)
    found = [mean for status in SCORED if (mean := mean_score(cells, "federated", status, classes))]
    total = sum(mean.cells for mean in found)
    return sum(mean.value * mean.cells for mean in found) / total if total else None


def _spent(run: Path) -> float | None:
    ledgers = sorted((run / "ledgers" / "federated").glob("*.jsonl"))
    if not ledgers:
        return None
    from client.ledger_lines import read_history
    from client.privacy import PatientAccountant  # Opacus takes seconds to import

    histories = [read_history(path.read_bytes()) for path in ledgers]
    return max(PatientAccountant().epsilon(history.charges, history.delta) for history in histories)


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
    """The run of the same setting that is not private; privacy's own keys say nothing about it."""
    return scores.get(tuple((key, value) for key, value in setting if not key.startswith("privacy.")))


def _score(rows: Sequence[Row]) -> Interval | None:
    return _interval(rows, "organs") or _interval(rows, "dice")


def _interval(rows: Sequence[Row], column: str) -> Interval | None:
    return Interval.of([value for row in rows if (value := getattr(row, column)) is not None])


def write_table(folder: Folder, rows: Sequence[Row], groups: Sequence[Group]) -> None:
    """Write `table.json`: every run and every mean; infinite epsilon as "inf"."""
    content: dict[str, Any] = {
        "runs": [asdict(row) for row in rows],
        "settings": [asdict(group) for group in groups],
        "audited": [asdict(bound) for bound in audited_bounds(folder)],
    }
    for part in ("runs", "settings"):
        for entry in content[part]:
            entry["epsilon"] = shown_epsilon(entry["epsilon"])
    write_atomically(folder.table, json.dumps(content, indent=1, allow_nan=False) + "\n")


def shown_epsilon(epsilon: float) -> float | str:
    """A number, or "inf"."""
    return "inf" if epsilon == OPEN else epsilon


def format_rows(groups: Sequence[Group], rows: Sequence[Row]) -> str:
    """The table as text, and the runs that failed with their reasons."""
    from simulations.benchmarks.table import format_table

    text = format_table(
        [
            {
                "setting": group.label or "-",
                "epsilon": {ALONE: "start alone", OPEN: "not private"}.get(group.epsilon, f"{group.epsilon:g}"),
                **{f"{kind} Dice": _shown(getattr(group, kind)) for kind in ("organs", "lesions", "dice")},
                "of not private": "-" if group.share is None else f"{group.share:.0%}",
                "of the gain": "-" if group.gained is None else f"{group.gained:.0%}",
                "spent": group.spent,
            }
            for group in groups
        ]
    )
    return text + "".join(f"FAILED {row.name}: {row.reason}\n" for row in rows if row.status == FAILED)


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval.mean:.3f}" + ("" if interval.half is None else f" +- {interval.half:.3f} ({interval.runs} runs)")
