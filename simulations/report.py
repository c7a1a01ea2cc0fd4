"""What did a run find? `report.html` of a run folder: one file, no network, made from that folder alone."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsm_core.stages import ORGANS, PRIOR, STAGES, TUMORS
from simulations import curves, heat, summary
from simulations.overlays import PREDICTION_COLOUR, TRUTH_COLOUR
from simulations.reading import ReportError, Run, read_run
from simulations.results import write_atomically
from simulations.summary import KINDS, STATUSES

FOUND_DICE = 0.5  # Dice from which a class counts as segmented in "what each site gained"
METHOD_NAMES = {
    "federated": "Federated", "local": "Local-only", "pooled": "Pooled", "fedavg": "Plain FedAvg",
}  # fmt: skip
METHOD_NOTES = {
    "federated": "query-aware FedAvg, one model for all sites",
    "local": "each site trains alone on its own labels",
    "pooled": "all scans in one place, the bound that federation tries to reach",
    "fedavg": "every tensor averaged by cases, class rows too; the optimiser's moments stay at each site",
}
STAGE_NOTES = {
    ORGANS: "organ queries and the image encoder",
    PRIOR: "what healthy tissue looks like",
    TUMORS: "tumour queries on the visual prompt",
}


def write_report(path: str | Path) -> Path:
    """Write `report.html` into a run folder and give its path.

    Raises:
        ReportError: the folder lacks what a report needs.
    """
    run = read_run(path)
    target = run.path / "report.html"
    write_atomically(target, render(run))
    return target


def render(run: Run) -> str:
    """The report as one HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(score=_score, level=heat.level, duration=_duration, percent=_percent)
    return environment.get_template("report.html.j2").render(**_context(run))


def _context(run: Run) -> dict[str, Any]:
    cells, kinds, info = run.cells, run.kinds, run.info
    methods = summary.methods_of(cells)
    lead = methods[0]
    classes = summary.ordered_classes(cells, kinds)
    grouped = {kind: [name for name in classes if kinds[name] == kind] for kind in KINDS}
    summaries = {method: summary.class_summaries(cells, method, kinds) for method in methods}
    encoder = str(info.get("text_encoder") or "not recorded")
    # `local` is both a method and the site's own baseline: gains need a shared model beside it.
    gains = summary.site_gains(cells, lead, "local", kinds) if lead != "local" else []
    return {
        "run": run,
        "info": info,
        "lead": lead,
        "methods": methods,
        "names": {method: METHOD_NAMES.get(method, method) for method in methods},
        "notes": {method: METHOD_NOTES.get(method, "") for method in methods},
        "sites": sorted({cell.site for cell in cells}),
        "kinds": {kind: names for kind, names in grouped.items() if names},
        "classes": classes,
        "table": {(cell.method, cell.site, cell.class_name): cell for cell in cells},
        "means": {
            (method, kind, status): summary.mean_score(cells, method, status, grouped.get(kind))
            for method in methods for status in STATUSES for kind in ("all", *KINDS)
        },
        "site_means": {
            (method, site, metric, status): summary.mean_score(
                [cell for cell in cells if cell.site == site], method, status, None, metric
            )
            for method in methods for site in {c.site for c in cells}
            for metric in ("dice", "nsd") for status in STATUSES
        },
        "shares": {
            (method, kind): summary.foreign_share(summaries[method], None if kind == "all" else kind)
            for method in methods for kind in ("all", *KINDS)
        },
        "summaries": summaries,
        "statuses": [status for status in STATUSES if any(cell.status == status for cell in cells)],
        "metrics": ["dice", "nsd"] if any(cell.nsd is not None for cell in cells) else ["dice"],
        "gains": gains,
        "labels": {site: (entry.get("classes") or {}) for site, entry in (info.get("sites") or {}).items()},
        "found_dice": FOUND_DICE,
        "overlays": {s: [o for o in run.overlays if o["status"] == s] for s in STATUSES},
        "truth_colour": TRUTH_COLOUR,
        "prediction_colour": PREDICTION_COLOUR,
        "encoder": encoder,
        "is_clip": "clip" in encoder.lower() and "not clip" not in encoder.lower(),
        "refusals": _refusals(run.history),
        "palette": {"light": heat.palette(heat.LIGHT), "dark": heat.palette(heat.DARK)},
        "stage_notes": STAGE_NOTES,
        **_charts(run, methods),
    }  # fmt: skip


def _charts(run: Run, methods: Sequence[str]) -> dict[str, Any]:
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    by_stage: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in run.history:
        by_method[record["method"]].append(record)
        by_stage[record.get("stage") or ""][record["method"]].append(record)
    ordered = [m for m in methods if m in by_method] + sorted(set(by_method) - set(methods))
    styles = curves.site_styles(site for record in run.history for site in (record.get("site_losses") or {}))
    rounds = max((_stage_round(record) for record in run.history), default=1)
    window = max(1, rounds // 20)
    steps = {m: _steps_a_round((run.info.get("methods") or {}).get(m) or {}) for m in ordered}
    knows_steps = all(steps.values()) and bool(steps)
    label = "optimiser steps, all sites together" if knows_steps else "round"
    loss_charts = {}
    for stage in sorted(by_stage, key=lambda name: STAGES.index(name) if name in STAGES else -1):
        held = by_stage[stage]
        lines = {
            METHOD_NAMES.get(m, m): curves.loss_lines(held[m], steps[m] if knows_steps else None, styles, window)
            for m in ordered
            if m in held
        }
        loss_charts[stage] = curves.loss_charts(lines, label)
    values = [
        curves.value_chart(f"{title}, {METHOD_NAMES.get(m, m)}", key, by_method[m])
        for m in ordered
        for key, title in (("server_step", "server step"), ("val_dice", "validation Dice"))
    ]
    return {
        "loss_charts": {stage: charts for stage, charts in loss_charts.items() if charts},
        "value_charts": [chart for chart in values if chart],
        "site_styles": styles,
        "window": window,
        "chart_size": (curves.WIDTH, curves.HEIGHT),
    }


def _stage_round(record: Mapping[str, Any]) -> int:
    return int(record.get("stage_round") or record["round"])


def _steps_a_round(method: Mapping[str, Any]) -> float | None:
    steps, rounds = method.get("steps_total"), method.get("rounds")
    return steps / rounds if steps and rounds else None


def _refusals(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Refused updates, equal ones gathered: {"method", "site", "reason", "rounds", "count"}."""
    rounds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for record in history:
        for refused in record.get("refused") or ():
            site, reason = (
                (str(refused.get("site", "")), str(refused.get("reason", "")))
                if isinstance(refused, Mapping)
                else ("", str(refused))
            )
            rounds[record["method"], site, reason].append(int(record["round"]))
    return [
        {
            "method": METHOD_NAMES.get(method, method),
            "site": site,
            "reason": reason,
            "rounds": _ranges(numbers),
            "count": len(numbers),
        }
        for (method, site, reason), numbers in rounds.items()
    ]


def _ranges(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}\u2013{b}" for a, b in spans)


def _score(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.0%}".replace("%", "\u202f%")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02.0f} s" if minutes else f"{rest:.1f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m simulations.report RUN_DIR`"""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if len(words) != 1 or words[0].startswith("-"):
        print("usage: python -m simulations.report RUN_DIR", file=sys.stderr)
        return 2
    try:
        print(write_report(words[0]))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
