"""What is the diffusion latent? An orthonormal Haar wavelet of the volume: it has no weights, so it cannot drift.

Axis legend: B batch, X Y Z voxels in RAS+ order of the latent, which has half the volume's voxels along each axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsm_core.model.layers import depth_to_space, space_to_depth

LATENT_CHANNELS = 8  # one low-pass, seven details
# An image in [0, 1] gives a low-pass channel in about [-1, 1], as a noise schedule expects; details are much smaller.
_LOW_GAIN, _DETAIL_GAIN = 2 / 8**0.5, 1.5


def to_latent(image: Tensor) -> Tensor:
    """(B, 1, 2X, 2Y, 2Z) in [0, 1] -> (B, 8, X, Y, Z); the low-pass channel comes first."""
    blocks = space_to_depth(image - 0.5)
    latent = torch.einsum("ij,bjxyz->bixyz", _basis(image), blocks)
    return latent * _gains(image)


def from_latent(latent: Tensor) -> Tensor:
    """The inverse of `to_latent`: (B, 8, X, Y, Z) -> (B, 1, 2X, 2Y, 2Z)."""
    blocks = torch.einsum("ji,bjxyz->bixyz", _basis(latent), latent / _gains(latent))
    return depth_to_space(blocks[:, None]) + 0.5


def _basis(like: Tensor) -> Tensor:
    pair = like.new_tensor([[1.0, 1.0], [1.0, -1.0]])
    return torch.kron(torch.kron(pair, pair), pair) / 8**0.5


def _gains(like: Tensor) -> Tensor:
    return like.new_tensor([_LOW_GAIN] + [_DETAIL_GAIN] * 7)[:, None, None, None]
