"""How does a tumour query find its lesion? Its text says in which organ to look, the visual prompt says what is odd.

The appearance of a lesion is shared by all classes: a class that no site has labelled uses it as it is and finds its
place through the host organ that its text names. What a class adds comes from its own row alone.

Axis legend: B batch, C channels, L lesions, O organs, E text width, X Y Z voxels in RAS+ order of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsm_core.model.decoder import LesionAttention
from dsm_core.model.layers import MLP, VoxelBlock, depth_to_space, dilate
from dsm_core.model.prompt import PROMPT_CHANNELS, SPREADS, VisualPrompt
from dsm_core.model.queries import SharedVector, TextToQuery

HOST_MARGIN = 5  # latent voxels; edge of the cube around an organ in which a lesion of it may bulge out
SPOT = 4  # voxels; a lesion is at least a cube of this size, so a scan without such a cube has none
_FLOOR = 0.01  # of the host's probability and of the residual, before their logarithms


class LesionPath(nn.Module):
    """Visual prompt to the map from which lesions are read; the denoiser's hidden map is fused into its stem."""

    def __init__(self, hidden: int, width: int, fusion: bool):
        super().__init__()
        self.stem = VoxelBlock(PROMPT_CHANNELS, width)
        self.fuse = nn.Conv3d(hidden, width, 1, bias=False) if fusion else None
        if self.fuse is not None:
            nn.init.zeros_(self.fuse.weight)
        self.down = nn.Sequential(
            VoxelBlock(width, 2 * width, stride=2), VoxelBlock(2 * width, 2 * width), VoxelBlock(2 * width, 2 * width)
        )
        self.back = nn.Conv3d(2 * width, width, 1)
        self.out = VoxelBlock(width, width)

    def forward(self, channels: Tensor, hidden: Tensor) -> Tensor:
        """Args: channels (B, PROMPT_CHANNELS, X, Y, Z); hidden (B, H, X, Y, Z). Returns (B, width, X, Y, Z)."""
        x = self.stem(channels)
        if self.fuse is not None:
            x = x + self.fuse(hidden)
        deep = F.interpolate(self.back(self.down(x)), size=x.shape[2:], mode="nearest")
        return self.out(x + deep)


class LesionHead(nn.Module):
    """Eight weight vectors a lesion, one for each voxel of a 2x2x2 block: a shared part and what its class row adds."""

    def __init__(self, width: int, map_width: int):
        super().__init__()
        self.shared = SharedVector(8 * map_width, spread=(3 * map_width) ** -0.5)
        with torch.no_grad():  # eight equal vectors: what differs between the voxels of a block must be learned
            self.shared.weight.copy_(self.shared.weight[:map_width].repeat(8))
        self.own = nn.Linear(width, 8 * map_width, bias=False)

    def forward(self, rows: Tensor, maps: Tensor) -> Tensor:
        """Args: rows (B, L, C), zero where nobody trained them; maps (B, M, X, Y, Z). Returns (B, L, 2X, 2Y, 2Z)."""
        weights = self.shared(rows.detach()) + self.own(rows)
        logits = weights.reshape(len(rows), -1, maps.shape[1]) @ maps.flatten(2)
        # Training starts from a probability of sigmoid(-2) = 0.12: most voxels belong to no lesion.
        return depth_to_space(logits.reshape(*rows.shape[:2], 8, *maps.shape[2:]) - 2.0)


@dataclass(frozen=True)
class TumorAnswer:
    """What the tumour queries found.

    Attributes:
        mask_logits: (B, L, 2X, 2Y, 2Z). presence_logits: (B, L). text_vectors: (B, L, E).
        host: (B, L, 2X, 2Y, 2Z), where each lesion may be, 0 to 1: see `lesion_reach`.
    """

    mask_logits: Tensor
    presence_logits: Tensor
    text_vectors: Tensor
    host: Tensor


class TumorQueries(nn.Module):
    """Lesion queries from text: masks from the visual prompt within their host, presence from attention."""

    def __init__(self, text_width: int, width: int, features: int, hidden: int, map_width: int, fusion: bool):
        super().__init__()
        self.feature_width = features
        self.to_query = TextToQuery(text_width, width)
        self.lesion = SharedVector(width)
        self.attention = nn.ModuleList(LesionAttention(width, features) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.presence = nn.Linear(width, 1)
        nn.init.constant_(self.presence.bias, -1.0)  # before any training, nothing is there
        self.spot_gain = SharedVector(1)
        nn.init.ones_(self.spot_gain.weight)
        self.to_text = MLP(width, width, text_width)
        self.path = LesionPath(hidden, map_width, fusion)
        self.head = LesionHead(width, map_width)

    def forward(self, prompt: VisualPrompt, text: Tensor, rows: Tensor, host: Tensor) -> TumorAnswer:
        """Find lesions.

        Args:
            prompt: the scan.
            text: (B, L, E), unit length.
            rows: (B, L, C), the class rows.
            host: (L, O + 1) weights of each organ as the lesion's host; the last column means "anywhere".
        """
        within = torch.einsum("lo,boxyz->blxyz", host[:, :-1], prompt.organs) + host[:, -1, None, None, None]
        residual = SPREADS * prompt.channels[:, :1].abs()
        queries = self.to_query(text, rows) + self.lesion(rows.detach())
        for attention, level in zip(self.attention, (prompt.eighth, prompt.quarter), strict=True):
            size = (level.shape[2], level.shape[3], level.shape[4])
            where = torch.log(F.adaptive_avg_pool3d(within, size) + _FLOOR)
            odd = torch.log(F.adaptive_max_pool3d(residual, size) + _FLOOR)
            queries = attention(queries, level, prompt.organ_queries, (where + odd).flatten(2))
        queries = self.norm(queries)
        logits = self.head(rows, self.path(prompt.channels, prompt.hidden))
        others = torch.einsum("lo,boxyz->blxyz", 1 - host[:, :-1], prompt.organs)
        reach = F.interpolate(lesion_reach(within, others), scale_factor=2, mode="nearest")
        logits = logits + torch.log(reach + _FLOOR)
        presence = self.presence(queries)[..., 0] + self.spot_gain(rows.detach())[..., 0] * brightest_spot(logits)
        return TumorAnswer(logits, presence, self.to_text(queries), reach)


def lesion_reach(within: Tensor, others: Tensor) -> Tensor:
    """Where a lesion may be, 0 to 1: in its host, and close around it where no other organ is.

    Args:
        within: (B, L, X, Y, Z), probability of the host. others: (B, L, X, Y, Z), summed probability of other organs.
    """
    around = dilate(within, HOST_MARGIN) * (1 - others).clamp(min=0)
    return torch.maximum(within, around).clamp(max=1)


def brightest_spot(logits: Tensor) -> Tensor:
    """(B, L), the largest mean probability of a cube of `SPOT` voxels, as a logit; carries no gradient.

    Args:
        logits: (B, L, X, Y, Z).
    """
    spots = F.avg_pool3d(logits.detach().float().sigmoid(), SPOT, SPOT // 2)
    return spots.flatten(2).amax(2).clamp(1e-4, 1 - 1e-4).logit()
