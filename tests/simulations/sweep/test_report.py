"""The curve's points lie where their numbers say, and the report names what was found and what was not."""

from __future__ import annotations

import math

import pytest

from simulations.sweep.audited import AuditedBound
from simulations.sweep.chart import epsilon_chart
from simulations.sweep.plan import plan_sweep
from simulations.sweep.report import write_report
from simulations.sweep.results import Group, Interval, group_rows, read_rows

ABOUT = {"name": "mine", "command": "dsm-sweep quick", "commit": "abc1234", "fixed": []}


def group(epsilon, mean, half=None, **setting):
    return Group(epsilon, setting, Interval(mean, half, 3), None, None, {}, None, None, None, 0)


def test_marks_lie_on_a_logarithmic_axis_with_their_intervals_and_audited_bounds():
    groups = [group(1, 0.4, 0.1), group(2, 0.5), group(4, 0.6), group(math.inf, 0.8, 0.05), group(0, 0.2)]
    chart = epsilon_chart(groups, [AuditedBound(4.0, 1.0, 0.95), AuditedBound(1.0, 0.0, 0.95)])
    one, two, four = chart.curves[0].marks
    assert two.x - one.x == pytest.approx(four.x - two.x, abs=0.2)
    assert one.y > two.y > four.y
    assert one.low - one.y == pytest.approx(one.y - one.high, abs=0.2)
    assert (two.low, two.audited_x) == (None, None)
    assert four.audited_x == one.x
    assert one.audited_x == chart.box[0]
    levels = {level.name: level for level in chart.levels}
    assert levels["not private"].is_open
    assert levels["public start alone"].y > one.y > levels["not private"].y
    assert all(chart.box[0] <= mark.x <= chart.box[1] for mark in chart.curves[0].marks)


def test_each_setting_has_a_line_and_no_private_run_no_chart():
    chart = epsilon_chart([group(1, 0.4, trained="a"), group(1, 0.3, trained="b")], [])
    assert [curve.name for curve in chart.curves] == ["trained a", "trained b"]
    assert epsilon_chart([group(math.inf, 0.8)], []) is None


def test_report_holds_every_run_and_every_reason(folder, finish, attack):
    plan = plan_sweep(["privacy.epsilon=0,1,8,inf", "public.seed=1"])
    for name, organ in (("epsilon_0", 0.3), ("epsilon_8", 0.72), ("epsilon_inf", 0.8)):
        finish(name, {("site_a", "liver", "local"): organ})
    folder.note_failure("epsilon_1", "site_a refused: <budget>")
    attack((8.0, 1.25))
    rows = read_rows(folder, plan)
    text = write_report(folder, ABOUT, rows, group_rows(rows)).read_text()
    assert "<th>liver</th>" in text
    for wanted in ("0.720", "90 %", "start alone", "not private", "site_a refused: &lt;budget&gt;", "1.25", "<circle"):
        assert wanted in text
    assert "phantoms, not patients" in text
    assert "<script" not in text


def test_report_is_written_before_any_run_is_done(folder):
    folder.path.mkdir()
    rows = read_rows(folder, plan_sweep(["privacy.epsilon=1,inf"]))
    assert "No private run is done yet" in write_report(folder, ABOUT, rows, group_rows(rows)).read_text()
