"""What would a cheaper arithmetic, another memory layout, another scan or more threads change in a step of DSM tiny?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from dsm_core.config import ModelConfig
from simulations.benchmarks.networks import DsmStep
from simulations.benchmarks.table import Row
from simulations.benchmarks.workers import Timing, Worker, timed

BATCH = 2
PLAIN = "as it is"


class _ChannelsLast(DsmStep):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.trainer.model.to(memory_format=torch.channels_last_3d)
        self.patches.image = self.patches.image.contiguous(memory_format=torch.channels_last_3d)


class _Bfloat16(DsmStep):
    def whole(self) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().whole()


class _Bfloat16ChannelsLast(_ChannelsLast, _Bfloat16):
    pass


class _TwoThreads(DsmStep):
    def whole(self) -> float:
        torch.set_num_threads(2)
        try:
            return super().whole()
        finally:
            torch.set_num_threads(1)


VARIANTS: dict[str, Callable[[int, int], DsmStep]] = {
    PLAIN: lambda size, seed: DsmStep(ModelConfig(), size, BATCH, seed),
    "torch scan": lambda size, seed: DsmStep(ModelConfig(scan_backend="torch"), size, BATCH, seed),
    "channels_last_3d": lambda size, seed: _ChannelsLast(ModelConfig(), size, BATCH, seed),
    "bf16 autocast": lambda size, seed: _Bfloat16(ModelConfig(), size, BATCH, seed),
    "bf16 autocast, channels_last_3d": lambda size, seed: _Bfloat16ChannelsLast(ModelConfig(), size, BATCH, seed),
    "two threads": lambda size, seed: _TwoThreads(ModelConfig(), size, BATCH, seed),
}


def variant_rows(size: int, rounds: int, seed: int) -> list[Row]:
    """Times of every variant, taking turns, and how far the first loss moves; then threads against clients."""
    steps = {name: make(size, seed) for name, make in VARIANTS.items()}
    first = {name: step.whole() for name, step in steps.items()}
    times: dict[str, list[Timing]] = {name: [] for name in steps}
    for _ in tqdm(range(rounds), desc="variants", unit="round"):
        for name, step in steps.items():
            times[name].append(timed(step.whole, least_s=0.0))

    def row(name: str) -> Row:
        ratios = [a.cpu_ms / b.cpu_ms for a, b in zip(times[name], times[PLAIN], strict=True)]
        return {
            "variant": name,
            "step_ms": statistics.median(t.cpu_ms for t in times[name]),
            "clock_ms": statistics.median(t.wall_ms for t in times[name]),
            "of_plain": statistics.median(ratios),
            "first_loss_moves_by": abs(first[name] - first[PLAIN]),
        }

    return [*map(row, times), *_clients(size, rounds, seed)]


def _clients(size: int, rounds: int, seed: int) -> list[Row]:
    """Steps a second of two clients at once with one thread each, and of one client at a time with two."""
    config = ModelConfig()
    with (
        Worker.start("first client", DsmStep, config, size, BATCH, seed) as first,
        Worker.start("second client", DsmStep, config, size, BATCH, seed + 1) as second,
        Worker.start("client with two threads", DsmStep, config, size, BATCH, seed, threads=2) as both,
    ):
        beside, alone = [], []
        for _ in range(rounds + 1):  # the first round is not counted
            beside.append(_seconds_a_step((first, second)))
            alone.append(_seconds_a_step((both,)))
    return [
        {"variant": "two clients at once, one thread each", "clock_ms": statistics.median(beside[1:]) * 1e3},
        {"variant": "one client at a time, two threads", "clock_ms": statistics.median(alone[1:]) * 1e3},
    ]


def _seconds_a_step(workers: Sequence[Worker], steps: int = 4) -> float:
    """Clock time over steps made, when every worker makes so many."""
    begun = time.perf_counter()
    for _ in range(steps):
        for worker in workers:
            worker.send("whole")
        for worker in workers:
            worker.answer("whole")
    return (time.perf_counter() - begun) / (steps * len(workers))
