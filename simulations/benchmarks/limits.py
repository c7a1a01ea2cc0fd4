"""What does this machine allow? Exponentials and memory traffic of one thread, and the memory of this process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dsm_core.model import native

_CACHED = torch.full((32768,), -0.5)  # 128 KB, and as much for the result: a core's second-level cache
_OUT = torch.empty_like(_CACHED)


def _exponentials() -> dict[str, Callable[[], object]]:
    cached, out = _CACHED.numpy(), _OUT.numpy()
    ways: dict[str, Callable[[], object]] = {
        "torch.exp": lambda: torch.exp(_CACHED, out=_OUT),
        "numpy.exp": lambda: np.exp(cached, out=out),
    }
    if native.is_available():
        ways["native exp"] = lambda: native.exponentials(_CACHED, _OUT)
    return ways


def fastest_exponential() -> str:
    """The library whose float32 exponential is fastest here, one thread."""
    ways = _exponentials()
    return min(ways, key=lambda name: min(_seconds(ways[name], 20) for _ in range(10)))


def repeat_exponential(name: str, count: int) -> None:
    """At least `count` exponentials of cached numbers, by one of the libraries."""
    way = _exponentials()[name]
    for _ in range(-(-count // _CACHED.numel())):
        way()


def machine_limits() -> dict[str, float | str]:
    """What one thread can do at best: exponentials of cached numbers, and bytes of a + b -> c, a second."""
    name = fastest_exponential()
    exponential = min(_seconds(_exponentials()[name], 50) for _ in range(20)) / _CACHED.numel()
    a, b, c = (torch.ones(1 << 25) for _ in range(3))
    triad = min(_seconds(lambda: torch.add(a, b, out=c), 1) for _ in range(5)) / (12 * a.numel())
    return {"exponentials_by": name, "exponentials_per_s": 1 / exponential, "triad_bytes_per_s": 1 / triad}


def _seconds(function: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


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
