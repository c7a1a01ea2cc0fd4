"""What did a sweep find? `report.html` of its folder: one file, no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulations.results import write_atomically
from simulations.sweep.audited import audited_bounds
from simulations.sweep.chart import epsilon_chart
from simulations.sweep.plan import ALONE, OPEN
from simulations.sweep.results import DONE, Group, Interval, Row
from simulations.sweep.runs import PUBLIC_RUN, Folder


def write_report(folder: Folder, about: dict[str, Any], rows: Sequence[Row], groups: Sequence[Group]) -> Path:
    """Write the report of what is done so far and give its path.

    Args:
        about: what `sweep.json` holds.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(interval=_interval, epsilon=_epsilon, percent=_percent)
    audited = audited_bounds(folder)
    infos = {row.name: folder.run_info(row.name) for row in rows if row.status == DONE}
    text = environment.get_template("sweep.html.j2").render(
        about=about,
        rows=rows,
        groups=groups,
        classes=sorted({name for group in groups for name in group.classes}),
        audited={bound.claimed: bound for bound in audited},
        chart=epsilon_chart(groups, audited),
        public=folder.run_info(PUBLIC_RUN),
        info=next(iter(infos.values()), {}),
        is_generated=any(info.get("generated") for info in infos.values()),
        has_organs=any(group.organs for group in groups),
        has_lesions=any(group.lesions for group in groups),
        done=len(infos),
    )
    write_atomically(folder.report, text)
    return folder.report


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{interval.mean:.3f}" + ("" if interval.half is None else f" ± {interval.half:.3f}")


def _epsilon(epsilon: float) -> str:
    return {ALONE: "start alone", OPEN: "not private"}.get(epsilon, f"{epsilon:g}")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:z.0f} %"
