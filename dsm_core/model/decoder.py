"""Queries meet features: k-means cross-attention for organs, soft cross-attention for lesions, masks for both.

Axis legend: B batch, C channels, X Y Z voxels in RAS+ order, N voxels in a row, Q queries, O organs, L lesions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsm_core.model.layers import MLP, ConvBlock, depth_to_space


class PixelDecoder(nn.Module):
    """Top-down pyramid: maps for the queries at 1/8 and 1/4, and the pixel map at 1/2 from which masks are read."""

    def __init__(self, widths: tuple[int, ...], width: int, mask_width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(w, width, 1) for w in widths[1:])
        self.smooth8 = ConvBlock(width, width)
        self.smooth4 = ConvBlock(width, width)
        self.lateral2 = nn.Conv3d(widths[0], widths[0], 1)
        self.reduce = nn.Conv3d(width, widths[0], 1)
        self.smooth2 = ConvBlock(widths[0], mask_width)

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns maps at 1/8 (B, C, ...), 1/4 (B, C, ...) and the pixel map at 1/2 (B, M, ...)."""
        half, *deeper = pyramid
        quarter, eighth, sixteenth = (conv(x) for conv, x in zip(self.lateral, deeper, strict=True))
        eighth = self.smooth8(eighth + _double(sixteenth))
        quarter = self.smooth4(quarter + _double(eighth))
        return eighth, quarter, self.smooth2(self.lateral2(half) + _double(self.reduce(quarter)))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention and feed-forward, of Linear layers: Opacus rejects nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, 2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        b, q, c = x.shape
        heads = self.qkv(self.norm(x)).reshape(b, q, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(b, q, c))
        return x + self.mlp(self.norm_mlp(x))


class KMeansAttention(nn.Module):
    """Object-aware grouping: voxels are given to their nearest query, cluster means update the queries.

    kMaX-DeepLab, Yu et al. 2022, arXiv:2207.04044, eq. 7; the hard assignment passes gradients straight through.
    """

    def __init__(self, width: int, features: int, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Conv3d(features, width, 1)
        self.value = nn.Conv3d(features, width, 1)
        self.update = nn.Linear(width, width)
        self.mix = SelfAttention(width)

    def forward(self, queries: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Args: queries (B, Q, C), the last is the void; features (B, F, X, Y, Z).

        Returns:
            queries (B, Q, C) and the grouping logits (B, Q, X, Y, Z).
        """
        keys = F.normalize(self.key(features).flatten(2), dim=1)
        logits = F.normalize(self.query(self.norm(queries)), dim=2) @ keys / self.temperature
        soft = logits.softmax(dim=1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        assigned = hard + soft - soft.detach()
        means = assigned @ self.value(features).flatten(2).transpose(1, 2) / (hard.sum(2, keepdim=True) + 1.0)
        queries = self.mix(queries + self.update(means))
        return queries, logits.unflatten(2, features.shape[2:])


class LesionAttention(nn.Module):
    """Lesion queries look at the features and at the organ queries; attention leans towards the host organ."""

    def __init__(self, width: int, features: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Conv3d(features, 2 * width, 1)
        self.organ_key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, 2 * width, width)

    def forward(self, lesions: Tensor, features: Tensor, organs: Tensor, bias: Tensor) -> Tensor:
        """Args: lesions (B, L, C); features (B, F, X, Y, Z); organs (B, O, C); bias (B, L, N), added to the attention.

        Returns:
            (B, L, C).
        """
        b, lesion_count, c = lesions.shape
        memory = self.key_value(features).flatten(2).transpose(1, 2)
        memory = torch.cat([memory, self.organ_key_value(organs)], 1)
        bias = torch.cat([bias, bias.new_zeros(b, lesion_count, organs.shape[1])], 2)
        key, value = memory.reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        query = self.query(self.norm(lesions)).reshape(b, lesion_count, self.heads, -1).transpose(1, 2)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None])
        lesions = lesions + self.out(seen.transpose(1, 2).reshape(b, lesion_count, c))
        return lesions + self.mlp(self.norm_mlp(lesions))


class MaskHead(nn.Module):
    """How a query reads its mask from the pixel map: eight weight vectors, one for each voxel of a 2x2x2 block."""

    def __init__(self, width: int, mask_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mask = MLP(width, 2 * width, 8 * mask_width)
        self.presence = nn.Linear(width, 1)
        self.scale = mask_width**-0.5

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, C) -> weights (B, Q, 8, M) for `read_masks`, presence (B, Q)."""
        queries = self.norm(queries)
        return self.mask(queries).unflatten(2, (8, -1)) * self.scale, self.presence(queries)[..., 0]


def read_masks(weights: Tensor, offset: Tensor, pixels: Tensor) -> Tensor:
    """Masks of all queries in one product: every further pass over full-resolution masks costs as much again.

    Args: weights (B, Q, 8, M); offset (B, Q), added to all voxels of a mask; pixels (B, M, X/2, Y/2, Z/2).

    Returns:
        Logits (B, Q, X, Y, Z).
    """
    # Training starts from a probability of sigmoid(-2) = 0.12: most voxels belong to no one class.
    start = (offset - 2.0).repeat_interleave(8, 1)[..., None]
    logits = torch.baddbmm(start, weights.flatten(1, 2), pixels.flatten(2))
    return depth_to_space(logits.reshape(*weights.shape[:3], *pixels.shape[2:]))
