"""Charts: the right points at the right places."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simulations.curves import (
    HEIGHT,
    WIDTH,
    Line,
    loss_charts,
    loss_lines,
    make_chart,
    running_mean,
    site_styles,
    value_chart,
)

RECORDS: list[dict[str, Any]] = [
    {"round": 1, "loss": 2.0, "site_losses": {"a": 1.0, "b": 3.0}, "server_step": 1.0},
    {"round": 2, "loss": 1.0, "site_losses": {"a": 1.0, "b": None}, "server_step": None},
    {"round": 3, "loss": None, "site_losses": {"a": 0.5, "b": 1.5}, "server_step": 2.0},
]


def test_running_mean_by_hand() -> None:
    assert running_mean([(0, 4.0), (1, 2.0), (2, 0.0)], 2) == [(0, 4.0), (1, 3.0), (2, 1.0)]


def test_lines_count_optimiser_steps_and_skip_what_was_not_recorded() -> None:
    a, b, mean = loss_lines(RECORDS, 20.0, site_styles("ab"), 1)
    assert a.points == ((20.0, 1.0), (40.0, 1.0), (60.0, 0.5))
    assert b.points == ((20.0, 3.0), (60.0, 1.5))
    assert mean.points == ((20.0, 2.0), (40.0, 1.0))
    assert mean.style is None


def test_sites_that_report_alone_are_averaged_by_round() -> None:
    alone = [
        {"round": r, "loss": loss, "site_losses": {s: loss}} for r in (1, 2) for s, loss in (("a", 1.0), ("b", 3.0))
    ]
    assert loss_lines(alone, None, site_styles("ab"), 1)[-1].points == ((1.0, 2.0), (2.0, 2.0))


def test_every_point_lies_inside_the_picture_and_charts_share_their_axes() -> None:
    lines = {"one": [Line("x", ((1, 1.0), (100, 0.1)))], "two": [Line("x", ((1, 5.0), (50, 0.2)))], "none": []}
    one, two = loss_charts(lines, "step")
    assert one.y_ticks == two.y_ticks
    assert one.x_ticks == two.x_ticks
    for point in f"{one.lines[0].path} {two.lines[0].path}".split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_long_histories_are_thinned_and_keep_their_end() -> None:
    chart = make_chart("t", "x", "y", [Line("x", tuple((i, math.sin(i)) for i in range(5001)))])
    assert chart
    assert len(points := chart.lines[0].path.split()) <= 302
    assert float(points[-1].split(",")[0]) == chart.box[1]


@pytest.mark.parametrize("points", [(), ((1.0, 2.0),)])
def test_no_chart_without_two_points(points: tuple[tuple[float, float], ...]) -> None:
    assert make_chart("t", "x", "y", [Line("x", points)]) is None


def test_a_constant_line_still_has_an_axis() -> None:
    chart = make_chart("t", "x", "y", [Line("x", ((1, 1.0), (2, 1.0)))])
    assert chart
    assert len(chart.y_ticks) > 1


def test_values_that_were_not_recorded_make_no_chart() -> None:
    assert value_chart("validation Dice", "val_dice", RECORDS) is None
    chart = value_chart("server step", "server_step", RECORDS)
    assert chart
    assert chart.lines[0].points == ((1.0, 1.0), (3.0, 2.0))


def test_no_two_of_24_sites_look_the_same() -> None:
    assert len(set(site_styles(f"s{i}" for i in range(24)).values())) == 24
