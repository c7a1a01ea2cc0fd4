"""The parts of a deployed round add up to it, and a process that failed is no measurement."""

import sys

import pytest

from simulations.benchmarks.deployment import _rows, _side_by_side
from strategies.deployment.errors import DeploymentError


def record(seconds, answers, training):
    return {"seconds": seconds, "answer_seconds": answers, "site_seconds": training}


def test_the_parts_of_a_round_are_those_of_its_slowest_site_and_add_up():
    in_process = [record(9.0, {"a": 8.0}, {"a": 7.0}), *[record(2.0, {"a": 1.9}, {"a": 1.5})] * 3]
    first = record(60.0, {"a": 50.0, "b": 50.0}, {"a": 2.0, "b": 2.0})
    deployed = [first, *[record(20.0, {"a": 17.0, "b": 19.0}, {"a": 3.0, "b": 1.0})] * 3]
    rows = _rows(in_process, deployed, starts_s=6.0, opens_s=2.0)
    assert [(row["part"], row["seconds"], row["first_round_s"]) for row in rows[:2]] == [
        ("a round in process", 2.0, 9.0),
        ("a round deployed", 20.0, 60.0),
    ]
    assert [row["seconds"] for row in rows[2:]] == [3.0, 6.0, 2.0, 19.0 - 3.0 - 6.0 - 2.0, 1.0]
    assert sum(row["share"] for row in rows[2:]) == pytest.approx(1.0)


def test_processes_run_side_by_side_and_one_that_failed_is_named():
    seconds, said = _side_by_side([[sys.executable, "-c", "import time; time.sleep(0.4); print(7)"]] * 2)
    assert said == ["7\n", "7\n"]
    assert seconds >= 0.4
    with pytest.raises(DeploymentError, match="1 of 2 measured processes ended with 3"):
        _side_by_side([[sys.executable, "-c", "import sys; sys.exit(3)"], [sys.executable, "-c", ""]])
