"""How is the native CPU scan differentiated? The C kernels as one autograd function, gate and skip weight included.

Axes: `B` batch, `L` sequence, `D` channels, `N` states per channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dsm_core.model import native

_ScanCall = native.call_structure(
    "ScanCall",
    sizes="states softplus",
    inputs="u delta A B C D z dy",
    strides="u_batch u_step delta_batch delta_step A_batch B_batch B_step C_batch C_step D_batch "
    "z_batch z_step dy_batch dy_step",
    outputs="y starts du ddelta dz dA dD dB dC",
)


def _arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, softplus: bool
) -> Any:
    states = A.shape[-1]
    shape = native.CallShape(*u.shape, native.threads_for(u.numel() * states))
    call = _ScanCall(shape, states, softplus)
    call.u_batch, call.u_step, _ = u.stride()
    call.delta_batch, call.delta_step, _ = delta.stride()
    call.B_batch, call.B_step, _ = B.stride()
    call.C_batch, call.C_step, _ = C.stride()
    call.A_batch = A.stride(0) if A.dim() == 3 else 0
    if D is not None and D.dim() == 2:
        call.D_batch = D.stride(0)
    if z is not None:
        call.z_batch, call.z_step, _ = z.stride()
    return call


class NativeScan(torch.autograd.Function):
    """y (B, L, D), float32, with softplus, skip weight and gate fused. Shapes as in `selective_scan_channel_last`."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        softplus: bool,
        keeps_states: bool,
    ) -> Tensor:
        u, delta, B, C = map(native.dense_rows, (u, delta, B, C))
        A, D, z = A.contiguous(), None if D is None else D.contiguous(), None if z is None else native.dense_rows(z)
        y, starts = torch.empty(u.shape), None
        if keeps_states:
            starts = torch.empty(native.kernels().scan_starts_size(*u.shape, A.shape[-1]))
        inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z}
        native.call("scan_forward", _arguments(u, delta, A, B, C, D, z, softplus), {**inputs, "y": y, "starts": starts})
        ctx.save_for_backward(u, delta, A, B, C, D, z, starts)
        ctx.softplus = softplus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, starts = ctx.saved_tensors
        (batch, _, channels), states = u.shape, A.shape[-1]
        call, dy = _arguments(u, delta, A, B, C, D, z, ctx.softplus), native.dense_rows(dy)
        call.dy_batch, call.dy_step, _ = dy.stride()
        tiles = native.kernels().scan_tiles(batch, channels, call.shape.threads)
        du, ddelta, dz = torch.empty(u.shape), torch.empty(u.shape), None if z is None else torch.empty(u.shape)
        dA, dD = torch.empty(batch, channels, states), torch.empty(batch, channels)
        dB, dC = torch.empty(tiles, *B.shape), torch.empty(tiles, *C.shape)
        inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "dy": dy, "starts": starts}
        outputs = {"du": du, "ddelta": ddelta, "dz": dz, "dA": dA, "dD": dD, "dB": dB, "dC": dC}
        native.call("scan_backward", call, {**inputs, **outputs})
        dB, dC = (t.sum(0) if tiles > 1 else t[0] for t in (dB, dC))
        dA = dA if A.dim() == 3 else dA.sum(0)
        return du, ddelta, dA, dB, dC, None if D is None else dD if D.dim() == 2 else dD.sum(0), dz, None, None


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, softplus: bool
) -> Tensor:
    """Selective scan (B, L, D) of float32 CPU tensors, as `scan_torch.scan`."""
    tensors = (u, delta, A, B, C, D, z)
    keeps_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return NativeScan.apply(*tensors, softplus, keeps_states)
