"""What does this machine allow? Exponentials and memory traffic of one thread, and the memory of this process.

Axes: `B` batch, `D` channels, `L` sequence, `N` states.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine_limits() -> dict[str, float]:
    """What one thread can do: exponentials of cached numbers per second, and bytes of a + b -> c per second."""
    cached = torch.full((32768,), -0.5)
    out = torch.empty_like(cached)
    exponentials = min(_timed(lambda: torch.exp(cached, out=out), 50) for _ in range(20)) / cached.numel()
    a, b, c = (torch.ones(1 << 25) for _ in range(3))
    triad = min(_timed(lambda: torch.add(a, b, out=c), 1) for _ in range(5)) / (12 * a.numel())
    return {"exponentials_per_s": 1 / exponentials, "triad_bytes_per_s": 1 / triad}


def _timed(function: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def limit_ms(shape: tuple[int, ...], limits: dict[str, float]) -> tuple[float, float]:
    """Least time of a forward pass (one exponential per state) and of forward and backward (three), in ms."""
    states = shape[0] * shape[1] * shape[2] * shape[3]
    forward = states / limits["exponentials_per_s"] * 1e3
    return forward, 3 * forward


def _status_mb(field: str) -> float | None:
    """A line of Linux's /proc/self/status in MB; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = [line for line in status.read_text().splitlines() if line.startswith(field)]
    return int(lines[0].split()[1]) / 1024 if lines else None


def reset_peak_mb() -> float:
    """Forgets the peak of resident memory where the system can, and returns what is resident, in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_mb()
    return _status_mb("VmRSS") or peak_mb()


def peak_mb() -> float:
    """Peak of resident memory, in MB."""
    return _status_mb("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
