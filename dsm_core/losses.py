"""Losses under partial labels: what a case does not annotate is unknown, never background.

Every loss is computed per sample and only then averaged, so that samples stay independent (differential privacy).
Axis legend: B batch, K classes the site labels, Q queries, O organs, X Y Z voxels, E text width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_core.mask_sums import mask_sums
from dsm_core.model import DSMOutput, QuerySet


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of `dsm_loss`."""

    dice: float = 1.0
    cross_entropy: float = 1.0
    grouping: float = 0.3
    presence: float = 0.1
    text: float = 0.05
    lesion: float = 2.0  # of a lesion's mask, against 1 of an organ's


def mask_losses(logits: Tensor, masks: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """Soft Dice loss (Milletari et al. 2016) where the class is present, and cross-entropy, on annotated classes only.

    Args:
        logits: (B, K, X, Y, Z). masks: (B, K, X, Y, Z) in {0, 1}.
        annotated: (B, K), 0 where the class is unknown, else its weight in the mean.

    Returns:
        Two tensors (B,): zero for a sample that annotates nothing.
    """
    sums = mask_sums(logits.flatten(2), masks.flatten(2))
    annotated = annotated.to(sums.overlap.dtype)
    dice = 1 - (2 * sums.overlap + 1) / (sums.predicted + sums.volume + 1)
    present = annotated * (sums.volume > 0)
    cross_entropy = sums.cross_entropy / math.prod(masks.shape[2:])
    per_class = annotated.sum(1).clamp(min=1e-6)
    return (dice * present).sum(1) / per_class, (cross_entropy * annotated).sum(1) / per_class


def allowed_groups(share: Tensor, annotated: Tensor, columns: Tensor, groups: int, known_from: float = 0.4) -> Tensor:
    """Which groups a coarse voxel may belong to, given what its case annotates.

    A voxel of which an annotated organ fills more than `known_from` belongs to that organ. Any other voxel may be void
    (the last group), any organ that this case does not annotate (marginal cross-entropy, Shi et al. 2021,
    arXiv:2007.03868), or an annotated organ that it touches.

    Args:
        share: (B, K, x, y, z) share of the coarse voxel that each organ fills. annotated: (B, K).
        columns: (K,) group of each organ.

    Returns:
        (B, groups, x, y, z) bool.
    """
    inside = annotated.bool()[:, :, None, None, None]
    known = (share > known_from) & inside
    free = torch.ones(len(share), groups, dtype=torch.bool, device=share.device)
    free[:, columns] = ~annotated.bool()
    allowed = free[:, :, None, None, None] & ~known.any(1, keepdim=True)
    allowed = allowed.expand(-1, -1, *share.shape[2:]).clone()
    allowed[:, columns] |= known | ((share > 0) & inside & ~known.any(1, keepdim=True))
    return allowed


def grouping_loss(logits: Tensor, allowed: Tensor) -> Tensor:
    """Marginal cross-entropy -log sum_{allowed} p, averaged over voxels, voxels of known organs counting half of it.

    Args:
        logits: (B, G, x, y, z). allowed: (B, G, x, y, z) bool.

    Returns:
        (B,).
    """
    marginal = torch.logsumexp(logits.masked_fill(~allowed, -1e4), 1) - torch.logsumexp(logits, 1)
    loss = -marginal.flatten(1)
    is_known = (~allowed[:, -1]).flatten(1).to(loss.dtype)
    known = (loss * is_known).sum(1) / is_known.sum(1).clamp(min=1)
    other = (loss * (1 - is_known)).sum(1) / (1 - is_known).sum(1).clamp(min=1)
    return 0.5 * (known + other)


def text_loss(vectors: Tensor, bank: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of the queries against the fixed bank (van den Oord et al. 2018): a query must still say its class.

    Args:
        vectors: (B, Q, E). bank: (N, E) unit vectors. target: (Q,) bank row of each query.

    Returns:
        (B,).
    """
    logits = F.normalize(vectors, dim=2) @ bank.T / temperature
    picked = logits.log_softmax(2).gather(2, target.expand(len(vectors), -1)[..., None])[..., 0]
    return -picked.mean(1)


def dsm_loss(
    output: DSMOutput,
    queries: QuerySet,
    masks: Tensor,
    annotated: Tensor,
    bank: Tensor,
    weights: LossWeights | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All parts together.

    Args:
        output: answers to the K asked queries. masks: (B, K, X, Y, Z). annotated: (B, K). bank: (N, E).

    Returns:
        The loss per sample (B,), and its parts (B,) by name.
    """
    weights = weights or LossWeights()
    share = torch.tensor([weights.lesion if q >= queries.organs else 1.0 for q in queries.asked])
    dice, cross_entropy = mask_losses(output.mask_logits, masks, annotated * share)
    asked = torch.tensor(queries.asked)
    organ = [i for i, q in enumerate(queries.asked) if q < queries.organs]
    grouping = torch.zeros_like(dice)
    share = masks[:, organ].float()
    for logits in sorted(output.grouping_logits, key=lambda g: -g.shape[2]) if organ else ():
        _, _, x, y, z = logits.shape
        share = F.adaptive_avg_pool3d(share, (x, y, z))  # finest first: the next scale pools far fewer voxels
        allowed = allowed_groups(share, annotated[:, organ], asked[organ], logits.shape[1])
        grouping = grouping + grouping_loss(logits, allowed) / len(output.grouping_logits)
    annotated = annotated.to(dice.dtype)
    present = masks.flatten(2).any(2).to(dice.dtype)
    presence = F.binary_cross_entropy_with_logits(output.presence_logits, present, reduction="none")
    presence = (presence * annotated).sum(1) / annotated.sum(1).clamp(min=1)
    parts = {
        "dice": weights.dice * dice,
        "cross_entropy": weights.cross_entropy * cross_entropy,
        "grouping": weights.grouping * grouping,
        "presence": weights.presence * presence,
        "text": weights.text * text_loss(output.text_vectors, bank, queries.row[asked]),
    }
    return torch.stack(list(parts.values())).sum(0), parts
