"""Which selective scan runs here? One operator, three backends: mamba-ssm on CUDA, native C on CPU, blocked PyTorch.

Axes: `B` batch, `L` sequence, `D` channels, `N` states per channel.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsm_core.config import ConfigError
from dsm_core.model import native, scan_native, scan_torch

BACKENDS = ("auto", "native", "torch", "cuda")
_logger = logging.getLogger(__name__)


@cache
def _mamba_ssm() -> Any:
    """mamba-ssm's `selective_scan_fn`, or None; a broken CUDA build may raise anything when imported."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:
        _logger.warning("mamba-ssm cannot be imported (%s); CUDA tensors use the torch scan", type(error).__name__)
        return None
    return selective_scan_fn


@cache
def _native_is_there() -> bool:
    if native.is_available():
        return True
    _logger.warning(
        "the native scan is not there (no C compiler at install time, or an old build); CPU tensors use the torch scan"
    )
    return False


def scan_backend(device: torch.device | str, requested: str = "auto") -> str:
    """The backend that a scan on `device` uses: "cuda", "native" or "torch".

    Raises:
        ConfigError: an unknown name, or a backend that was asked for and cannot run on this device.
    """
    kind = torch.device(device).type
    if requested not in BACKENDS:
        raise ConfigError(f"scan backend wants one of {BACKENDS}, found {requested!r}")
    if requested == "torch":
        return "torch"
    if requested == "auto":
        if kind == "cuda":
            return "cuda" if _mamba_ssm() else "torch"
        return "native" if kind == "cpu" and _native_is_there() else "torch"
    if kind != {"native": "cpu", "cuda": "cuda"}[requested]:
        raise ConfigError(f"scan backend {requested!r} does not run on {kind} tensors; use 'auto' or 'torch'")
    if not (native.is_available() if requested == "native" else _mamba_ssm()):
        missing = "a C compiler at install time" if requested == "native" else "the package mamba-ssm"
        raise ConfigError(f"scan backend {requested!r} is not available: it wants {missing}; use 'auto' or 'torch'")
    return requested


def _check(name: str, tensor: Tensor | None, *wanted: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) not in wanted:
        raise ValueError(
            f"selective scan: {name} wants shape {' or '.join(map(str, wanted))}, found {tuple(tensor.shape)}"
        )


def selective_scan_channel_last(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Selective scan (Gu & Dao 2023, arXiv:2312.00752, algorithm 2) of sequences whose channels come last.

    Args:
        u, delta, z: (B, L, D); z gates the output, y * silu(z).
        A: (D, N), or (B, D, N) so that its gradient is per sample; negative for a stable recurrence.
        B, C: (B, L, N).
        D: (D) or (B, D), skip weight.
        delta_bias: (D), added to delta before the softplus.

    Returns:
        (B, L, D) in the dtype of u. Computed in float32, or in float64 if u is.

    Raises:
        ValueError: shapes that do not fit.
        ConfigError: a backend that is not there.
    """
    if u.dim() != 3 or A.dim() not in (2, 3):
        raise ValueError(
            f"selective scan: wants u with 3 axes and A with 2 or 3, found {tuple(u.shape)} and {tuple(A.shape)}"
        )
    batch, length, channels = u.shape
    states = A.shape[-1]
    _check("A", A, (channels, states), (batch, channels, states))
    for name, tensor in (("delta", delta), ("z", z)):
        _check(name, tensor, (batch, length, channels))
    for name, tensor in (("B", B), ("C", C)):
        _check(name, tensor, (batch, length, states))
    _check("D", D, (channels,), (batch, channels))
    _check("delta_bias", delta_bias, (channels,))
    chosen = scan_backend(u.device, backend)
    if delta_bias is not None:
        delta = delta + delta_bias
    if u.numel() == 0 or u.dtype == torch.float64:
        chosen = "torch"
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u_, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    D, z = None if D is None else D.to(dtype), None if z is None else z.to(dtype)
    run = {"native": scan_native.scan, "torch": scan_torch.scan, "cuda": _scan_cuda}[chosen]
    y = run(u_, delta, A, B, C, D, z, delta_softplus)
    return y if y.dtype == u.dtype else y.to(u.dtype)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = "auto",
) -> Tensor:
    """`selective_scan_channel_last` in the layout of mamba-ssm: u, delta, z (B, D, L), B, C (B, N, L) -> (B, D, L)."""
    for name, tensor in (("u", u), ("delta", delta), ("B", B), ("C", C), ("z", z)):
        if tensor is not None and tensor.dim() != 3:
            raise ValueError(
                f"selective scan: {name} wants 3 axes, (B, D, L) or (B, N, L), found {tuple(tensor.shape)}"
            )
    u, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))
    z = None if z is None else z.transpose(1, 2)
    return selective_scan_channel_last(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend).transpose(1, 2)


def _scan_cuda(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, softplus: bool
) -> Tensor:
    """mamba-ssm's kernel; a per-sample A or D makes channels of the samples, each with its own group of B and C."""
    batch, length, channels = u.shape
    u, delta, B, C = (t.to(u.dtype).transpose(1, 2) for t in (u, delta, B, C))
    z = None if z is None else z.to(u.dtype).transpose(1, 2)
    if A.dim() == 3 or (D is not None and D.dim() == 2):
        A = A.expand(batch, -1, -1).reshape(batch * channels, -1)
        D = None if D is None else D.expand(batch, -1).reshape(-1)
        u, delta = (t.reshape(1, batch * channels, length) for t in (u, delta))
        z = None if z is None else z.reshape(1, batch * channels, length)
        B, C = B.unsqueeze(0), C.unsqueeze(0)
    A, D = A.float(), None if D is None else D.float()
    y = _mamba_ssm()(u, delta, A, B.contiguous(), C.contiguous(), D, z, None, softplus)
    return y.reshape(batch, channels, length).transpose(1, 2)
