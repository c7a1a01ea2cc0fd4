"""Where do the points of the curve of Dice against epsilon fall? Geometry on a logarithmic axis, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulations.curves import Style, site_styles
from simulations.sweep.audited import AuditedBound
from simulations.sweep.plan import ALONE, OPEN
from simulations.sweep.results import Group, Interval

WIDTH, HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 16, 48

Pixel = Callable[[float], float]


@dataclass(frozen=True)
class Mark:
    """A point with its interval and, where an audit lies beside the runs, its lower bound on epsilon; in pixels."""

    x: float
    y: float
    low: float | None
    high: float | None
    audited_x: float | None
    title: str


@dataclass(frozen=True)
class Curve:
    """The marks of one setting and the line through them."""

    name: str
    style: Style
    marks: tuple[Mark, ...]
    path: str


@dataclass(frozen=True)
class Level:
    """A setting without epsilon: a horizontal line, and the band of its interval."""

    name: str
    is_open: bool
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class EpsilonChart:
    """Everything that the template draws."""

    curves: tuple[Curve, ...]
    levels: tuple[Level, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    box: tuple[int, int, int, int] = (_LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM)
    size: tuple[int, int] = (WIDTH, HEIGHT)


def epsilon_chart(groups: Sequence[Group], audited: Sequence[AuditedBound]) -> EpsilonChart | None:
    """The curve of every setting; None before any private run has a score."""
    private = [(group, group.score) for group in groups if group.epsilon not in (ALONE, OPEN) and group.score]
    if not private:
        return None
    bounds = {bound.claimed: bound for bound in audited}
    shown = [group.epsilon for group, _ in private]
    shown += [bound.lower_bound for bound in audited if bound.claimed in shown and bound.lower_bound > 0]
    low, high = math.log2(max(min(shown), min(g.epsilon for g, _ in private) / 8)) - 0.5, math.log2(max(shown)) + 0.5

    def to_x(epsilon: float) -> float:
        place = (max(math.log2(epsilon), low) - low if epsilon > 0 else 0.0) / (high - low)
        return round(_LEFT + place * (WIDTH - _LEFT - _RIGHT), 1)

    def to_y(dice: float) -> float:
        return round(HEIGHT - _BOTTOM - min(max(dice, 0.0), 1.0) * (HEIGHT - _TOP - _BOTTOM), 1)

    labels = list(dict.fromkeys(group.label for group, _ in private))
    styles = site_styles(labels)
    curves = []
    for label in labels:
        marks = tuple(_mark(g, s, bounds.get(g.epsilon), to_x, to_y) for g, s in private if g.label == label)
        path = " ".join(f"{mark.x},{mark.y}" for mark in marks)
        curves.append(Curve(label or "private", styles[label], marks, path))
    levels = tuple(
        Level(
            ("not private" if group.epsilon == OPEN else "public start alone")
            + (f", {group.label}" * bool(group.label)),
            group.epsilon == OPEN,
            to_y(score.mean),
            None if score.half is None else to_y(score.mean - score.half),
            None if score.half is None else to_y(score.mean + score.half),
        )
        for group in groups
        if group.epsilon in (ALONE, OPEN) and (score := group.score)
    )
    ticks = sorted({group.epsilon for group, _ in private})
    return EpsilonChart(
        tuple(curves), levels, tuple((to_x(e), f"{e:g}") for e in ticks),
        tuple((to_y(d / 5), f"{d / 5:.1f}") for d in range(6)),
    )  # fmt: skip


def _mark(group: Group, score: Interval, bound: AuditedBound | None, to_x: Pixel, to_y: Pixel) -> Mark:
    half = score.half
    spread = "" if half is None else f" ± {half:.3f} ({score.runs} runs)"
    audit = "" if bound is None else f"; an audit shows at least {bound.lower_bound:.2f}"
    return Mark(
        to_x(group.epsilon), to_y(score.mean),
        None if half is None else to_y(score.mean - half), None if half is None else to_y(score.mean + half),
        None if bound is None else to_x(bound.lower_bound),
        f"epsilon {group.epsilon:g}{', ' * bool(group.label)}{group.label}: Dice {score.mean:.3f}{spread}{audit}",
    )  # fmt: skip
