"""How fast is the selective scan here? Ours, others' that are installed, and what this machine allows, in one run.

    python -m simulations.benchmarks.scan [--threads 1] [--methods native,torch,mambapy] [--loop] [--json FILE]

Axes: `B` batch, `L` sequence, `D` channels, `N` states. Every method runs in a process of its own, so that its extra
memory is its own. The loop of mamba-ssm's reference is quadratic backward: `--loop` waits for it at the shortest shape.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from dsm_core.model import native
from dsm_core.model.selective_scan import selective_scan_channel_last
from simulations.benchmarks.limits import limit_ms, machine_limits, peak_mb, reset_peak_mb

SHAPES = ((2, 64, 4096, 16), (1, 96, 32768, 16), (2, 192, 512, 16))  # B, D, L, N
Scan = Callable[..., Tensor]


@dataclass
class Row:
    """One method at one shape: times in ms (medians), memory in MB, errors relative to float64."""

    method: str
    shape: tuple[int, ...]
    forward_ms: float
    both_ms: float
    extra_mb: float
    error: float
    gradient_error: float


def _fused(states: Callable[[Tensor, Tensor], Tensor]) -> Scan:
    """A whole scan from a function (decay, input), both (B, L, D, N), to the states."""

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        delta = F.softplus(delta)
        h = states(torch.exp(delta.unsqueeze(-1) * A), (delta * u).unsqueeze(-1) * B.unsqueeze(2))
        return ((h @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)

    return scan


def _loop(decay: Tensor, x: Tensor) -> Tensor:
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, 1)


def _associative(decay: Tensor, x: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return associative_scan(combine, (decay, x), dim=1, combine_mode="generic")[1]


def _mambapy(decay: Tensor, x: Tensor) -> Tensor:
    from mambapy.pscan import pscan

    return pscan(decay, x)


def _ours(backend: str) -> Scan:
    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        return selective_scan_channel_last(u, delta, A, B, C, D, z, backend=backend)

    return scan


METHODS: dict[str, Scan] = {
    "native": _ours("native"),
    "torch": _ours("torch"),
    "cuda": _ours("cuda"),
    "mambapy": _fused(_mambapy),
    "associative_scan": _fused(_associative),
    "loop": _fused(_loop),
}


def is_runnable(method: str) -> bool:
    """Whether what a method needs is installed here."""
    if method == "native":
        return native.is_available()
    if method == "cuda":
        return torch.cuda.is_available() and find_spec("mamba_ssm") is not None
    return method != "mambapy" or find_spec("mambapy") is not None


def random_inputs(shape: tuple[int, ...], device: str = "cpu", seed: int = 0) -> list[Tensor]:
    """u, delta, A, B, C, D, z as a trained layer makes them: softplus(delta) about 0.01 to 0.3, A = -1 .. -N."""
    batch, channels, length, states = shape
    generator = torch.Generator().manual_seed(seed)
    wide = (batch, length, channels)
    u, delta, z = (torch.randn(wide, generator=generator) for _ in range(3))
    B, C = (torch.randn(batch, length, states, generator=generator) for _ in range(2))
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    return [t.to(device).requires_grad_() for t in (u, delta - 3, A, B, C, torch.ones(channels), z)]


def _median_ms(function: Callable[[], object], seconds: float = 3.0) -> float:
    times: list[float] = []
    while sum(times) < seconds and len(times) < 25:
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times) * 1e3


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def measure(method: str, shape: tuple[int, ...]) -> Row:
    """Times, extra memory and errors of one method; best called in a fresh process."""
    scan, device = METHODS[method], "cuda" if method == "cuda" else "cpu"
    small = random_inputs((shape[0], shape[1], 16, shape[3]), device)
    torch.autograd.grad(scan(*small), small, torch.ones_like(small[0]))

    inputs = random_inputs(shape, device)
    weights = torch.ones_like(inputs[0])
    before = reset_peak_mb()
    y = scan(*inputs)
    gradients = torch.autograd.grad(y, inputs, weights)
    extra = peak_mb() - before
    if device == "cuda":
        extra = torch.cuda.max_memory_allocated() / 2**20

    exact = [t.detach().cpu().double().requires_grad_() for t in inputs]
    wanted = METHODS["torch"](*exact)
    wanted_gradients = torch.autograd.grad(wanted, exact, weights.cpu().double())
    errors = [_relative(g.cpu(), w) for g, w in zip(gradients, wanted_gradients, strict=True)]
    error = _relative(y.detach().cpu(), wanted.detach())
    del exact, wanted, wanted_gradients, gradients, y

    def forward() -> None:
        with torch.no_grad():
            scan(*inputs)

    def both() -> None:
        torch.autograd.grad(scan(*inputs), inputs, weights)

    return Row(method, shape, _median_ms(forward), _median_ms(both), extra, error, max(errors))


def _measure_in_process(method: str, shape: tuple[int, ...], threads: int) -> Row | None:
    command = [sys.executable, "-m", "simulations.benchmarks.scan", "--threads", str(threads)]
    command += ["--one", method, ",".join(map(str, shape))]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        print(f"{method} at {shape} failed: {outcome.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return Row(**json.loads(outcome.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", default=",".join(m for m in METHODS if m != "loop"))
    parser.add_argument("--loop", action="store_true", help="also the plain loop, minutes, at the shortest shape")
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        method, shape = arguments.one
        print(json.dumps(asdict(measure(method, tuple(map(int, shape.split(",")))))))
        return

    isa = native.instruction_set() if native.is_available() else "no native kernel"
    limits = machine_limits()
    print(f"{date.today()}, {platform.machine()}, {isa}, torch {torch.__version__}, threads {arguments.threads}")
    print(f"limits: {limits['exponentials_per_s']:.2e} exp/s, {limits['triad_bytes_per_s'] / 1e9:.1f} GB/s\n")
    print("| (B, D, L, N) | method | forward ms | forward+backward ms | extra MB | error | gradient error |")
    print("|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    for shape in SHAPES:
        methods = [m for m in arguments.methods.split(",") if is_runnable(m)]
        if arguments.loop and shape == min(SHAPES, key=lambda s: s[2]):
            methods.append("loop")
        forward, both = limit_ms(shape, limits)
        print(f"| {shape} | limit | {forward:.1f} | {both:.1f} | | | |")
        for method in methods:
            row = _measure_in_process(method, shape, arguments.threads)
            if row is not None:
                rows.append(row)
                print(
                    f"| {shape} | {method} | {row.forward_ms:.1f} | {row.both_ms:.1f} | {row.extra_mb:.0f} "
                    f"| {row.error:.1e} | {row.gradient_error:.1e} |",
                    flush=True,
                )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"limits": limits, "threads": arguments.threads, "rows": [asdict(r) for r in rows]}, file, indent=1
            )


if __name__ == "__main__":
    main()
