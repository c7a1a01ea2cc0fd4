"""Does the scan benchmark compare like with like, and does it say what it could not compare?"""

import math

import pytest
import torch

from simulations.benchmarks import scan_methods
from simulations.benchmarks.limits import fastest_exponential, machine_limits
from simulations.benchmarks.scan import CHECKED, SHORT, Series, checks, main, planned, ratio
from simulations.benchmarks.scan_methods import METHODS, LimitJob, Quality, ScanJob, exact_results, missing
from simulations.benchmarks.workers import Timing, WorkerFault

SMALL = (2, 6, 20, 4)


@pytest.mark.parametrize("method", [m for m in METHODS if not missing(m)])
def test_every_method_computes_the_same_scan(method, tmp_path):
    torch.save(exact_results(SMALL), tmp_path / "exact.pt")
    quality = ScanJob(method, SMALL, 0, tmp_path / "exact.pt", backward=True).quality()
    assert quality.error < 1e-6
    assert quality.gradient_error < 5e-6


def test_limit_counts_one_exponential_forward_and_three_in_all(monkeypatch):
    counted = []
    monkeypatch.setattr(scan_methods, "timed", lambda function: function())
    monkeypatch.setattr(scan_methods, "repeat_exponential", lambda name, count: counted.append(count))
    job = LimitJob((2, 10, 50, 4))
    job.forward()
    job.both()
    assert counted == [4000, 12000]


def test_limit_is_the_fastest_exponential_at_hand():
    limits = machine_limits()
    assert limits["exponentials_by"] in ("torch.exp", "numpy.exp", "native exp")
    assert limits["exponentials_per_s"] > 1e6
    assert fastest_exponential()


def test_a_peer_that_is_not_installed_is_a_row_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(scan_methods, "find_spec", lambda name: None)
    rows = {series.method: series.row() for series in planned(SHORT, ["mambapy", "transformers"])}
    assert rows["mambapy"]["note"] == "not run: mambapy is not installed: pip install '.[bench]'"
    assert rows["mambapy"]["both_ms"] is None
    assert rows["limit"]["note"]


def test_quadratic_backward_is_run_at_the_short_shape_only():
    assert Series("transformers", SHORT).runs_backward
    assert not Series("transformers", CHECKED).runs_backward
    assert Series("mambapy", CHECKED).runs_backward


def test_a_ratio_is_the_median_over_rounds_that_both_took_part_in():
    slow, fast = Series("mambapy", CHECKED), Series("native", CHECKED)
    slow.times["both"] = [Timing(0, ms) for ms in (30.0, 80.0, 20.0)]
    fast.times["both"] = [Timing(0, ms) for ms in (1.0, 2.0, 1.0, 100.0)]
    assert ratio(slow, fast) == 30.0
    assert math.isnan(ratio(None, fast))
    assert math.isnan(ratio(slow, Series("native", CHECKED)))


def test_checks_without_the_peer_do_not_hold():
    native = Series("native", CHECKED, quality=Quality(10.0, 1e-7, 1e-6))
    native.times["both"] = [Timing(10.0, 10.0)]
    found = {check.name: check for check in checks([native])}
    assert not found[f"mambapy / native, time at {'x'.join(map(str, CHECKED))}"].ok
    assert found["native, worst output error"].ok
    assert not found["torch, worst output error"].ok


def test_a_failed_method_keeps_its_row_and_says_why():
    class Fails:
        def ask(self, method):
            raise WorkerFault("mambapy: MemoryError: no room")

    series = Series("mambapy", SHORT)
    series.take_turn(Fails())
    assert series.row()["note"] == "failed: mambapy: MemoryError: no room"
    series.take_turn(None)


@pytest.mark.parametrize("words", [["--methods", "fast"], ["--rounds", "0"], ["no.such=1"]])
def test_bad_input_is_named(words, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("scan: ")
