"""Small layers that several parts of DSM share.

Axis legend: B batch, C channels, X Y Z voxels in RAS+ order, Q queries.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def groups_for(channels: int) -> int:
    """Groups of a GroupNorm: eight channels each where that divides, else one group."""
    return channels // 8 if channels % 8 == 0 else 1


class ConvBlock(nn.Module):
    """Convolution, GroupNorm, SiLU. GroupNorm, because batch statistics would tie the samples of a batch together."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(groups_for(outputs), outputs)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class VoxelBlock(nn.Module):
    """Convolution, LayerNorm over each voxel's channels, SiLU: for what learns on crops and answers on whole scans.

    GroupNorm takes its statistics over all voxels, and a scan that is mostly far from organs has others than a crop.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.LayerNorm(outputs)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(norm_channels(self.norm, self.conv(x)))


def norm_channels(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """(B, C, X, Y, Z), every voxel normalised over its channels."""
    return norm(x.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """x + conv(norm(conv(x))), at one resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups_for(channels), channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.norm(self.second(self.first(x))))


class MLP(nn.Sequential):
    """Two linear layers with a GELU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def space_to_depth(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B, 8C, X/2, Y/2, Z/2): every 2x2x2 block becomes channels, nothing is lost."""
    b, c, X, Y, Z = x.shape
    x = x.reshape(b, c, X // 2, 2, Y // 2, 2, Z // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * 8, X // 2, Y // 2, Z // 2)


def depth_to_space(x: Tensor) -> Tensor:
    """(B, Q, 8, X, Y, Z) -> (B, Q, 2X, 2Y, 2Z), inverse of `space_to_depth` (sub-pixel, Shi et al. 2016)."""
    b, q, _, X, Y, Z = x.shape
    x = x.reshape(b, q, 2, 2, 2, X, Y, Z)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, q, 2 * X, 2 * Y, 2 * Z)


def dilate(x: Tensor, size: int) -> Tensor:
    """Largest value in a cube of `size` voxels around each, (B, L, X, Y, Z); axis by axis, ten times faster at 5."""
    for axis in range(3):
        window = [1, 1, 1]
        window[axis] = size
        x = F.max_pool3d(x, window, 1, [n // 2 for n in window])
    return x
