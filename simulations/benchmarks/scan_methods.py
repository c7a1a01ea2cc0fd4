"""Who computes a selective scan, and how is each asked? Ours, others' libraries, the loop, and the machine's limit.

Axes: `B` batch, `L` sequence, `D` channels, `N` states. All get u, delta, A, B, C, D, z, channels last, and do the
softplus of delta, the skip weight and the gate as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dsm_core.model import native
from dsm_core.model.selective_scan import selective_scan_channel_last
from simulations.benchmarks.limits import fastest_exponential, peak_mb, repeat_exponential, reset_peak_mb
from simulations.benchmarks.workers import Timing, timed

Shape = tuple[int, int, int, int]  # B, D, L, N
Scan = Callable[..., Tensor]


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


def _transformers(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """What `transformers.MambaMixer` calls without CUDA; it hands transposed views to its scan, as is done here."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    u, delta, B, C, z = (t.transpose(1, 2) for t in (u, delta, B, C, z))
    return mamba_selective_scan(u, delta, A, B, C, D, z, delta_softplus=True).transpose(1, 2)


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
    "transformers": _transformers,
    "loop": _fused(_loop),
}
LIMIT = "limit"
QUADRATIC_BACKWARD = ("transformers", "loop")  # every step's gradient fills a zero tensor of the whole sequence


def missing(method: str) -> str | None:
    """What a method lacks here, and how to get it; None when it can run."""
    if method == "native":
        return None if native.is_available() else "the C library was not built: install again with a C compiler"
    if method == "cuda":
        if not torch.cuda.is_available():
            return "no CUDA device"
        return None if find_spec("mamba_ssm") else "mamba-ssm is not installed: pip install '.[cuda]'"
    if method in ("mambapy", "transformers") and not find_spec(method):
        return f"{method} is not installed: pip install '.[bench]'"
    return None


def random_inputs(shape: Shape, device: str = "cpu", seed: int = 0) -> list[Tensor]:
    """u, delta, A, B, C, D, z as a trained layer makes them: softplus(delta) about 0.01 to 0.3, A = -1 .. -N."""
    batch, channels, length, states = shape
    generator = torch.Generator().manual_seed(seed)
    wide = (batch, length, channels)
    u, delta, z = (torch.randn(wide, generator=generator) for _ in range(3))
    B, C = (torch.randn(batch, length, states, generator=generator) for _ in range(2))
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    return [t.to(device).requires_grad_() for t in (u, delta - 3, A, B, C, torch.ones(channels), z)]


def exact_results(shape: Shape, seed: int = 0) -> list[Tensor]:
    """Output and gradients of the sum of it, by our PyTorch scan in float64."""
    inputs = [t.detach().double().requires_grad_() for t in random_inputs(shape, seed=seed)]
    y = METHODS["torch"](*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.cpu().double() - wanted).norm() / wanted.norm()).item()


@dataclass(frozen=True)
class Quality:
    """Extra memory in MB of a forward and backward pass, and errors relative to float64: output, worst gradient."""

    extra_mb: float | None = None
    error: float | None = None
    gradient_error: float | None = None


class ScanJob:
    """One method at one shape, in a worker: first its quality, then as many timings as are asked for.

    Args:
        exact: file of `exact_results`, by torch.save.
    """

    def __init__(self, method: str, shape: Shape, seed: int, exact: Path, backward: bool) -> None:
        self.scan, self.exact, self.backward = METHODS[method], exact, backward
        device = "cuda" if method == "cuda" else "cpu"
        small = random_inputs((shape[0], shape[1], 16, shape[3]), device)
        torch.autograd.grad(self.scan(*small), small, torch.ones_like(small[0]))  # code loads, kernels warm up
        self.inputs = random_inputs(shape, device, seed)
        self.weights = torch.ones_like(self.inputs[0])

    def quality(self) -> Quality:
        before = reset_peak_mb()
        y = self.scan(*self.inputs) if self.backward else self._forward()
        gradients = torch.autograd.grad(y, self.inputs, self.weights) if self.backward else ()
        on_device = y.device.type == "cuda"
        extra = torch.cuda.max_memory_allocated() / 2**20 if on_device else peak_mb() - before
        wanted, *wanted_gradients = torch.load(self.exact)
        errors = [_relative(g, w) for g, w in zip(gradients, wanted_gradients, strict=False)]
        return Quality(extra, _relative(y.detach(), wanted), max(errors) if errors else None)

    def forward(self) -> Timing:
        return timed(self._forward)

    def both(self) -> Timing:
        return timed(lambda: torch.autograd.grad(self.scan(*self.inputs), self.inputs, self.weights))

    def _forward(self) -> Tensor:
        with torch.no_grad():
            return self.scan(*self.inputs)


class LimitJob:
    """Exponentials of cached numbers alone: one for every state forward, three for forward and backward.

    A scan needs one exponential a state and step; its backward pass needs it again, and about as much arithmetic.
    """

    def __init__(self, shape: Shape) -> None:
        batch, channels, length, states = shape
        self.count = batch * channels * length * states
        self.name = fastest_exponential()

    def quality(self) -> Quality:
        return Quality()

    def forward(self) -> Timing:
        return timed(lambda: repeat_exponential(self.name, self.count))

    def both(self) -> Timing:
        return timed(lambda: repeat_exponential(self.name, 3 * self.count))
