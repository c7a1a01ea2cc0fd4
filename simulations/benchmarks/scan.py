"""How fast is the selective scan here? Ours, others' that are installed, and what this machine allows, in one run.

python -m simulations.benchmarks.scan                    three shapes, minutes
python -m simulations.benchmarks.scan --quick            the shape of the checks, three rounds
python -m simulations.benchmarks.scan seed=1 out=runs    seed of the inputs, folder of the result

Every method waits in a process of its own and they take turns, round by round, so that a noisy minute hurts all of
them; a ratio is the median over rounds. One thread is timed by processor time, more threads and CUDA by the clock.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from dsm_core.config import ConfigError
from dsm_core.config_words import compose_config
from dsm_core.model import native
from simulations.benchmarks.limits import machine_limits
from simulations.benchmarks.scan_methods import (
    LIMIT,
    METHODS,
    QUADRATIC_BACKWARD,
    LimitJob,
    Quality,
    ScanJob,
    Shape,
    exact_results,
    missing,
)
from simulations.benchmarks.table import Check, Row, write_benchmark
from simulations.benchmarks.workers import Timing, Worker, WorkerFault

CHECKED: Shape = (2, 64, 4096, 16)
SHORT: Shape = (2, 192, 512, 16)  # the one at which a quadratic backward pass ends within seconds
SHAPES: tuple[Shape, ...] = (SHORT, CHECKED, (1, 96, 32768, 16))
ROUNDS, LEAST_ROUNDS = 15, 3
BUDGET_S = 60.0  # a slow method leaves the rounds after so long, but takes part in the first three
Pass = Literal["forward", "both"]


@dataclass
class Series:
    """What is known of one method, in so many threads, at one shape.

    Attributes:
        note: what a reader of the numbers must know; why there are none where `is_run` is False.
    """

    method: str
    shape: Shape
    threads: int = 1
    note: str = ""
    is_run: bool = True
    quality: Quality | None = None
    times: dict[Pass, list[Timing]] = field(default_factory=lambda: {"forward": [], "both": []})

    @property
    def runs_backward(self) -> bool:
        return self.method not in QUADRATIC_BACKWARD or self.shape == SHORT

    @property
    def is_slow(self) -> bool:
        spent = sum(timing.wall_ms for timings in self.times.values() for timing in timings)
        return len(self.times["forward"]) >= LEAST_ROUNDS and spent > BUDGET_S * 1e3

    def take_turn(self, worker: Worker) -> None:
        """One round: forward, then forward and backward; before the first, its memory and errors."""
        if not self.is_run or self.is_slow:
            return
        try:
            self.quality = self.quality or worker.ask("quality")
            self.times["forward"].append(worker.ask("forward"))
            if self.runs_backward:
                self.times["both"].append(worker.ask("both"))
        except WorkerFault as fault:
            self.note, self.is_run = f"failed: {fault}", False

    def row(self) -> Row:
        on_clock = self.threads > 1 or self.method == "cuda"
        medians = {
            f"{name}_ms": statistics.median(t.wall_ms if on_clock else t.cpu_ms for t in timings) if timings else None
            for name, timings in self.times.items()
        }
        quality = self.quality or Quality()
        return {
            "shape": "x".join(map(str, self.shape)),
            "method": self.method,
            "threads": self.threads,
            "time": "clock" if on_clock else "processor",
            **medians,
            "rounds": len(self.times["forward"]),
            "extra_mb": quality.extra_mb,
            "error": quality.error,
            "gradient_error": quality.gradient_error,
            "note": self.note,
        }


def planned(shape: Shape, methods: Sequence[str]) -> list[Series]:
    """The series of one shape: the limit, every method, and the native scan in two threads where it is checked."""
    found = [Series(LIMIT, shape, note="exponentials alone: one a state forward, three forward and backward")]
    for method in methods:
        series = Series(method, shape)
        if lacks := missing(method):
            series.note, series.is_run = f"not run: {lacks}", False
        elif not series.runs_backward:
            series.note = "forward only: its backward pass is quadratic in L, see the short shape"
        found.append(series)
        if method == "native" and shape == CHECKED and series.is_run and (os.cpu_count() or 1) > 1:
            found.append(Series(method, shape, threads=2))
    return found


def measure(shape: Shape, methods: Sequence[str], rounds: int, seed: int = 0) -> list[Series]:
    """Every method at one shape, taking turns."""
    found = planned(shape, methods)
    with ExitStack() as stack:
        exact = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsm-"))) / "exact.pt"
        torch.save(exact_results(shape, seed), exact)
        workers = {}
        for series in found:
            name = f"{series.method} at {shape}"
            if series.method == LIMIT:
                workers[id(series)] = Worker.start(name, LimitJob, shape)
            elif series.is_run:
                words = (series.method, shape, seed, exact, series.runs_backward)
                workers[id(series)] = Worker.start(name, ScanJob, *words, threads=series.threads)
        for worker in workers.values():
            stack.enter_context(worker)
        for _ in tqdm(range(rounds), desc=f"{shape}", unit="round"):
            for series in found:
                if series.is_run:
                    series.take_turn(workers[id(series)])
    return found


def ratio(slower: Series | None, faster: Series | None, on_clock: bool = False) -> float:
    """How many times the time, forward and backward, the one takes of the other: median over the rounds of both."""
    if slower is None or faster is None:
        return math.nan
    rounds = zip(slower.times["both"], faster.times["both"], strict=False)
    ratios = [a.wall_ms / b.wall_ms if on_clock else a.cpu_ms / b.cpu_ms for a, b in rounds]
    return statistics.median(ratios) if ratios else math.nan


def checks(found: Sequence[Series]) -> list[Check]:
    """The promises of the scan; one whose peer is not installed does not hold."""
    known = {(s.method, s.threads): s for s in found if s.shape == CHECKED}
    limit, native_one, native_two, plain, mambapy = (
        known.get(key) for key in ((LIMIT, 1), ("native", 1), ("native", 2), ("torch", 1), ("mambapy", 1))
    )
    memory = [s.quality.extra_mb if s and s.quality and s.quality.extra_mb else math.nan for s in (plain, mambapy)]
    at = "x".join(map(str, CHECKED))
    made = [
        Check.at_least(f"mambapy / native, time at {at}", ratio(mambapy, native_one), 25),
        Check.at_most(f"native / limit, time at {at}", ratio(native_one, limit), 3.5),
        Check.at_least(f"mambapy / torch, time at {at}", ratio(mambapy, plain), 2.5),
        Check.at_most(f"torch / mambapy, extra memory at {at}", memory[0] / memory[1], 1 / 6),
        Check.at_least(f"native, one thread / two, time at {at}", ratio(native_one, native_two, on_clock=True), 1.6),
    ]
    for method in ("native", "torch"):
        quality = [s.quality for s in found if s.method == method and s.quality]
        errors = [q.error for q in quality if q.error is not None]
        gradient_errors = [q.gradient_error for q in quality if q.gradient_error is not None]
        made += [
            Check.at_most(f"{method}, worst output error", max(errors, default=math.nan), 1e-6),
            Check.at_most(f"{method}, worst gradient error", max(gradient_errors, default=math.nan), 5e-6),
        ]
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every check holds, 1 when one fails or could not be made, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="scan", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of dsm-simulate: seed, out")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of %(default)s")
    parser.add_argument("--rounds", "--repeats", type=int, default=ROUNDS, help="timings of each method")
    parser.add_argument("--quick", action="store_true", help="the shape of the checks only, three rounds")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    methods = options.methods.split(",")
    try:
        config = compose_config(options.overrides)
        if unknown := sorted(set(methods) - set(METHODS)):
            raise ConfigError(f"--methods wants some of {', '.join(METHODS)}, found {', '.join(unknown)}")
        if options.rounds < 1:
            raise ConfigError(f"--rounds wants at least 1, found {options.rounds}")
    except ConfigError as error:
        print(f"scan: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    limits = machine_limits()
    shapes, rounds = ((CHECKED,), LEAST_ROUNDS) if options.quick else (SHAPES, options.rounds)
    found = [series for shape in shapes for series in measure(shape, methods, rounds, config.seed)]
    path = write_benchmark(
        "scan",
        [series.row() for series in found],
        checks(found),
        command=["python", "-m", "simulations.benchmarks.scan", *words],
        config=config,
        text_encoder="not used",
        date=f"{date.today()}",
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        instruction_set=native.instruction_set() if native.is_available() else "no native kernel",
        limits=limits,
    )
    print(path)
    return 0 if all(check.ok for check in checks(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
