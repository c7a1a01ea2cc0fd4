"""The table of a sweep, as data (`table.json`) and as text in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from simulations.results import write_atomically
from simulations.sweep.audited import audited_bounds
from simulations.sweep.plan import ALONE, OPEN
from simulations.sweep.results import FAILED, Group, Interval, Row
from simulations.sweep.runs import Folder


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

    kinds = {"organs": "organs"}
    if any(group.lesions for group in groups):
        kinds |= {"lesions": "lesions", "all": "dice"}
    text = format_table(
        [
            {
                "setting": group.label or "-",
                "epsilon": {ALONE: "start alone", OPEN: "not private"}.get(group.epsilon, f"{group.epsilon:g}"),
                **{f"{name}, Dice": _shown(getattr(group, kind)) for name, kind in kinds.items()},
                "of not private": "-" if group.share is None else f"{group.share:.0%}",
                "of the gain": "-" if group.gained is None else f"{group.gained:z.0%}",
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
