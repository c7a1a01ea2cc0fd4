"""What is a Mamba layer, and how does it read a volume? Mamba with mamba-ssm's parameters, and a block of three scans.

Axes: `B` batch, `L` sequence, `C` channels of the volume, `E` inner channels, `N` states, `X Y Z` voxels in RAS+ order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dsm_core.model.causal_conv import causal_conv
from dsm_core.model.selective_scan import scan_backend, selective_scan_channel_last


class SampleWeight(nn.Module):
    """A raw parameter that is handed out once per sample, so that its output gradient is its per-sample gradient.

    Opacus takes a module that owns raw parameters through functorch, 20 times slower; a leaf of its own avoids that.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *weight.shape); `x` (B, ...) gives B only, and must be detached or backward hooks never fire."""
        return self.weight.expand(x.shape[0], *self.weight.shape)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix[:-1]] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        missing = args[2]
        super()._load_from_state_dict(state_dict, prefix, *args)
        missing[:] = [prefix[:-1] if key == f"{prefix}weight" else key for key in missing]


class _OwnsSampleWeights(nn.Module):
    """A module whose `SampleWeight` children are saved under their own name, as raw parameters of it would be."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name, child in self.named_children():
            if isinstance(child, SampleWeight) and prefix + name in state_dict:
                state_dict[f"{prefix}{name}.weight"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)


class CausalConv1d(_OwnsSampleWeights):
    """Depthwise causal convolution and SiLU; parameters as `nn.Conv1d(channels, channels, taps, groups=channels)`."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        bound = taps**-0.5
        self.weight = SampleWeight(torch.empty(channels, 1, taps).uniform_(-bound, bound))
        self.bias = SampleWeight(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, backend: str = "torch") -> Tensor:
        """(B, L, E) -> (B, L, E)."""
        samples = x.detach()
        return causal_conv(x, self.weight(samples).squeeze(2), self.bias(samples), backend)


class Mamba(_OwnsSampleWeights):
    """Mamba layer (Gu & Dao 2023, arXiv:2312.00752), parameters named and shaped as `mamba_ssm.Mamba`.

    Args:
        d_model: channels of the sequence.
        d_state: N, states per inner channel.
        d_conv: steps seen by the causal convolution.
        expand: inner channels per channel.
        backend: scan backend, see `scan_backend`.
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, backend: str = "auto"
    ) -> None:
        super().__init__()
        inner, rank = expand * d_model, math.ceil(d_model / 16)
        self.d_state, self.dt_rank, self.backend = d_state, rank, backend
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = CausalConv1d(inner, d_conv)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = SampleWeight(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = SampleWeight(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
            step = torch.exp(torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1))).clamp(min=1e-4)
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model), causal along L."""
        x, gate = self.in_proj(sequence).chunk(2, dim=-1)
        x = self.conv1d(x, scan_backend(x.device, self.backend))
        delta, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        samples = x.detach()
        A = -torch.exp(self.A_log(samples))
        y = selective_scan_channel_last(x, self.dt_proj(delta), A, B, C, self.D(samples), gate, backend=self.backend)
        return self.out_proj(y)


class MambaBlock3d(nn.Module):
    """Tokens of a volume mixed by Mamba layers along three axis orders, then by an MLP; both residual.

    Each order walks another axis fastest (as in SegMamba, Xing et al. 2024, arXiv:2401.13560), so that every voxel has
    its neighbour of each axis one step away; each order has its own layer and their outputs are averaged. Every second
    order runs backwards, so that both ends of the volume are seen.

    Args:
        channels: C, kept.
        state_size: N.
        expand: inner channels per channel of the Mamba layers.
        is_reversed: swaps the directions; alternate it over successive blocks.
        backend: scan backend, see `scan_backend`.
    """

    # axes of (B, X, Y, Z, C): the last spatial axis is walked fastest
    ORDERS = ((0, 1, 2, 3, 4), (0, 2, 3, 1, 4), (0, 3, 1, 2, 4))
    INVERSES = ((0, 1, 2, 3, 4), (0, 3, 1, 2, 4), (0, 2, 3, 1, 4))

    def __init__(
        self, channels: int, state_size: int = 16, expand: int = 2, is_reversed: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.is_reversed = is_reversed
        self.norm = nn.LayerNorm(channels)
        self.scans = nn.ModuleList(Mamba(channels, state_size, expand=expand, backend=backend) for _ in self.ORDERS)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, C, X, Y, Z)."""
        x = volume.permute(0, 2, 3, 4, 1)
        tokens = self.norm(x)
        mixed = []
        for index, (mamba, order, inverse) in enumerate(zip(self.scans, self.ORDERS, self.INVERSES, strict=True)):
            walk, runs_backwards = tokens.permute(order), (index % 2 == 1) != self.is_reversed
            sequence = walk.flatten(1, 3)
            sequence = mamba(sequence.flip(1)).flip(1) if runs_backwards else mamba(sequence)
            mixed.append(sequence.view(walk.shape).permute(inverse))
        x = x + sum(mixed) / len(mixed)
        x = x + self.mlp(self.mlp_norm(x))
        return x.permute(0, 4, 1, 2, 3).contiguous()
