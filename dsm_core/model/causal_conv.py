"""What does a Mamba layer's short convolution compute? Depthwise, causal, with SiLU; native on CPU, PyTorch elsewhere.

Axes: `B` batch, `L` sequence, `D` channels, `K` taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dsm_core.model import native

_ConvCall = native.call_structure(
    "ConvCall",
    sizes="taps",
    inputs="x weight bias dy",
    strides="x_batch x_step weight_batch bias_batch dy_batch dy_step",
    outputs="y dx dweight dbias",
)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    """silu(causal depthwise convolution): y_t sees x_(t-K+1) to x_t, zeros before the first step.

    Args:
        x: (B, L, D).
        weight: (B, D, K), of each sample; an expanded (D, K) will do.
        bias: (B, D).
        backend: "native" for the C kernel (CPU); anything else computes in PyTorch.

    Returns:
        (B, L, D) in the dtype of x.
    """
    if backend == "native" and x.dtype != torch.float64 and x.numel():
        y = NativeConv.apply(x.float(), weight.float(), bias.float())
        return y if y.dtype == x.dtype else y.to(x.dtype)
    length, taps = x.shape[1], weight.shape[-1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = bias.unsqueeze(1)
    for k in range(taps):
        y = torch.addcmul(y, padded[:, k : k + length], weight[:, None, :, k])
    return F.silu(y).to(x.dtype)


class NativeConv(torch.autograd.Function):
    """`causal_conv` of float32 CPU tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, y = native.dense_rows(x), torch.empty(x.shape)
        weight = weight if weight[0].is_contiguous() else weight.contiguous()
        bias = native.dense_rows(bias)
        tensors = {"x": x, "weight": weight, "bias": bias, "y": y}
        native.call("conv_forward", _arguments(x, weight, bias), tensors)
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias = ctx.saved_tensors
        dy = native.dense_rows(dy)
        dx, dweight, dbias = torch.empty(x.shape), torch.empty(weight.shape), torch.empty(bias.shape)
        call = _arguments(x, weight, bias)
        call.dy_batch, call.dy_step, _ = dy.stride()
        inputs = {"x": x, "weight": weight, "bias": bias, "dy": dy}
        native.call("conv_backward", call, {**inputs, "dx": dx, "dweight": dweight, "dbias": dbias})
        return dx, dweight, dbias


def _arguments(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    taps = weight.shape[-1]
    call = _ConvCall(native.CallShape(*x.shape, native.threads_for(x.numel() * taps)), taps)
    call.x_batch, call.x_step, _ = x.stride()
    call.weight_batch, call.bias_batch = weight.stride(0), bias.stride(0)
    return call
