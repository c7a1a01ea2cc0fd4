"""Where do the points of a training curve fall? Geometry of the report's line charts, drawn by its template as SVG."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44
_MOST_POINTS = 300

# Okabe and Ito (2008) without yellow and black, then the same again dashed.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Style:
    """How one site's line looks, the same in every chart."""

    colour: str
    dash: str


@dataclass(frozen=True)
class Line:
    """One polyline: its name, its points in data units and how it is drawn (None = the main line)."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: Style | None = None
    path: str = ""


@dataclass(frozen=True)
class Chart:
    """Everything the template needs to draw one chart; ticks are (pixel, text)."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    box: tuple[int, int, int, int] = (_LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM)


def site_styles(sites: Iterable[str]) -> dict[str, Style]:
    """A colour and a dash for every site; no two sites share both up to 24 sites."""
    n = len(_COLOURS)
    return {s: Style(_COLOURS[i % n], _DASHES[i // n % len(_DASHES)]) for i, s in enumerate(sorted(set(sites)))}


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Each value replaced by the mean of the last `window` ones (fewer at the start)."""
    values = [y for _, y in points]
    return [
        (x, math.fsum(part := values[max(0, i - window + 1) : i + 1]) / len(part)) for i, (x, _) in enumerate(points)
    ]


def loss_lines(
    records: Sequence[Mapping[str, Any]], steps_a_round: float | None, styles: Mapping[str, Style], window: int
) -> list[Line]:
    """Loss of one method in one stage: a line a site, then the mean of the sites as the main line.

    Args:
        steps_a_round: optimiser steps of all sites together in a round; x counts rounds of the stage when None.
        window: rounds of the running mean.
    """
    together: dict[float, list[float]] = defaultdict(list)
    apart: dict[str, dict[float, float]] = defaultdict(dict)
    for record in records:
        x = float(record.get("stage_round") or record["round"]) * (steps_a_round or 1.0)
        if record.get("loss") is not None:
            together[x].append(float(record["loss"]))
        for site, loss in (record.get("site_losses") or {}).items():
            if loss is not None:
                apart[site][x] = float(loss)
    lines = [
        Line(site, tuple(running_mean(sorted(apart[site].items()), window)), styles[site]) for site in sorted(apart)
    ]
    mean = [(x, math.fsum(losses) / len(losses)) for x, losses in sorted(together.items())]
    return [*lines, Line("mean of the sites", tuple(running_mean(mean, window)))] if mean else lines


def loss_charts(lines: Mapping[str, Sequence[Line]], x_label: str) -> list[Chart]:
    """One chart a method, all on the same axes so that they compare; methods without a line are left out.

    Losses of different stages do not compare: each stage has charts of its own.
    """
    points = [point for several in lines.values() for line in several for point in line.points]
    if not points:
        return []
    limits = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    charts = [make_chart(title, x_label, "loss", several, limits) for title, several in lines.items()]
    return [chart for chart in charts if chart]


def value_chart(title: str, key: str, records: Sequence[Mapping[str, Any]]) -> Chart | None:
    """One number of the rounds against the round; None when it was not recorded twice."""
    points = tuple((float(r["round"]), float(r[key])) for r in records if r.get(key) is not None)
    return make_chart(title, "round", title, [Line(title, points)])


def make_chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], limits: tuple[float, float, float] | None = None
) -> Chart | None:
    """Scale lines into the chart's box and choose its ticks; None when there is no line of two points.

    Args:
        limits: (largest x, smallest y, largest y) of the axes; those of the lines when None.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return None
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    x_high, y_low, y_high = limits or (max(xs), min(ys), max(ys))
    margin = 0.06 * (y_high - y_low) or 0.1 * abs(y_high) or 0.1
    y_low, y_high = (0.0 if 0 <= y_low < 0.5 * y_high else y_low - margin), y_high + margin

    def to_x(x: float) -> float:
        return round(_LEFT + x / x_high * (WIDTH - _LEFT - _RIGHT), 1)

    def to_y(y: float) -> float:
        return round(HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM), 1)

    drawn = [
        Line(s.name, s.points, s.style, " ".join(f"{to_x(x)},{to_y(y)}" for x, y in _thinned(s.points))) for s in lines
    ]
    x_ticks = [v for v in MaxNLocator(6, integer=True).tick_values(0, x_high) if 0 <= v <= x_high]
    y_ticks = [v for v in MaxNLocator(5).tick_values(y_low, y_high) if y_low <= v <= y_high]
    return Chart(
        title, x_label, y_label, tuple(drawn),
        tuple((to_x(v), f"{v:,.0f}".replace(",", "\u202f")) for v in x_ticks),
        tuple((to_y(v), f"{v:.4g}") for v in y_ticks),
    )  # fmt: skip


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = list(points[::step])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
