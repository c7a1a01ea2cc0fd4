"""What does a private training step cost? Ours beside an open step and Opacus' own ways, in one run.

    python -m simulations.benchmarks.dp_step [--quick] [--batch 2] [--patches 1] [--size 48] [--threads 1]

Every method takes the same patches of as many patients through the same model, from forward pass to AdamW. Times are
medians of steps that take turns; memory is the peak above what was resident before the first step, in a process of its
own. CPU time is what the checks compare: with one thread other work on the machine does not enter it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings

import torch

from dsm_core.config import Config
from dsm_core.hashed_words import HASHED_WORDS
from simulations.benchmarks.dp_methods import METHODS, OPEN, OURS, Step, Work
from simulations.benchmarks.limits import peak_mb, reset_peak_mb
from simulations.benchmarks.table import Check, write_benchmark

SLOWER_AT_MOST, LARGER_AT_MOST = 1.6, 3.0  # a private step against an open one
_LONGEST_S = 60.0  # a method that took as long in all takes no further turns


def measure_times(work: Work, repeats: int) -> list[dict[str, object]]:
    """A row a method: CPU and wall time of a step in ms, or why it cannot be taken."""
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, object]] = {}
    for method, make in METHODS.items():
        rows[method] = {"method": method}
        try:
            _, steps[method] = make(work, 1.0)
            steps[method]()
        except Exception as error:
            steps.pop(method, None)
            rows[method]["note"] = f"{type(error).__name__}: {error}".splitlines()[0][:90]
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in steps}
    for _ in range(repeats):
        for method, step in steps.items():
            if sum(wall for _, wall in times[method]) < _LONGEST_S:
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                times[method].append((time.process_time() - cpu, time.perf_counter() - wall))
    for method, taken in times.items():
        cpu_ms, wall_ms = (1e3 * statistics.median(column) for column in zip(*taken, strict=True))
        rows[method] |= {"cpu_ms": cpu_ms, "wall_ms": wall_ms, "steps": len(taken)}
    for row in rows.values():
        if "cpu_ms" in row:
            row["times"] = row["cpu_ms"] / rows[OPEN]["cpu_ms"]  # type: ignore[operator]
    return list(rows.values())


def measure_memory(method: str, work: Work) -> float:
    """Peak above what was resident before the first step, in MB; best called in a fresh process."""
    small = Work(work.patients, work.patches, 16, work.model)
    METHODS[method](small, 1.0)[1]()  # libraries and their workspaces
    _, step = METHODS[method](work, 1.0)
    before = reset_peak_mb()
    for _ in range(2):
        step()
    return peak_mb() - before


def _memory_in_process(method: str, arguments: argparse.Namespace) -> float | None:
    command = [sys.executable, "-m", "simulations.benchmarks.dp_step", "--memory-of", method]
    for name in ("batch", "patches", "size", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if outcome.returncode else float(json.loads(outcome.stdout.splitlines()[-1]))


def main() -> int:
    """Print the table, write `runs/benchmarks/dp_step.json`; 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="patients of a step")
    parser.add_argument("--patches", type=int, default=1, help="patches of a patient")
    parser.add_argument("--size", type=int, default=48, help="voxels along each side of a patch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three turns: does it run?")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        # No smaller patches: noise and clipping cost by the parameter, so that they weigh more beside fewer voxels.
        arguments.repeats = 3
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    config = Config()
    work = Work(arguments.batch, arguments.patches, arguments.size, config.model)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, work)))
        return 0
    rows = measure_times(work, arguments.repeats)
    for row in rows:
        if "cpu_ms" in row:
            row["extra_mb"] = _memory_in_process(str(row["method"]), arguments)
    found = {row["method"]: row for row in rows}
    memory = found[OURS]["extra_mb"] / found[OPEN]["extra_mb"]  # type: ignore[operator]
    checks = [
        Check.at_most("private step / open step, CPU time", found[OURS]["times"], SLOWER_AT_MOST),  # type: ignore[arg-type]
        Check.at_most("private step / open step, memory", memory, LARGER_AT_MOST),
    ]
    facts = {name: getattr(arguments, name) for name in ("batch", "patches", "size", "repeats", "threads", "quick")}
    facts["parameters"] = sum(parameter.numel() for parameter in work.trainer().model.parameters())
    write_benchmark(
        "dp_step",
        rows,
        checks,
        command=sys.argv,
        config=config,
        text_encoder=HASHED_WORDS,
        **facts,
    )
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
