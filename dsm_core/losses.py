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
from dsm_core.model import DSMOutput, QuerySet, TumorAnswer


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of `organ_loss` and `tumor_loss`."""

    dice: float = 1.0
    cross_entropy: float = 1.0
    # Dice alone makes a lesion's scores all or nothing, and 10 here drowns it: unseen tumours were no longer found.
    lesion_cross_entropy: float = 3.0
    grouping: float = 0.3
    presence: float = 0.1
    text: float = 0.05


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


def organ_loss(
    output: DSMOutput,
    queries: QuerySet,
    masks: Tensor,
    annotated: Tensor,
    bank: Tensor,
    weights: LossWeights | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the organ queries learn from.

    Args:
        output: answers to the K asked queries, all of them organs. masks: (B, K, X, Y, Z). annotated: (B, K).
        bank: (N, E).

    Returns:
        The loss per sample (B,), and its parts (B,) by name.
    """
    weights = weights or LossWeights()
    dice, cross_entropy = mask_losses(output.mask_logits, masks, annotated)
    asked = torch.tensor(queries.asked)
    grouping = torch.zeros_like(dice)
    share = masks.float()
    for logits in sorted(output.grouping_logits, key=lambda g: -g.shape[2]):
        _, _, x, y, z = logits.shape
        share = F.adaptive_avg_pool3d(share, (x, y, z))  # finest first: the next scale pools far fewer voxels
        allowed = allowed_groups(share, annotated, asked, logits.shape[1])
        grouping = grouping + grouping_loss(logits, allowed) / len(output.grouping_logits)
    parts = {
        "dice": weights.dice * dice,
        "cross_entropy": weights.cross_entropy * cross_entropy,
        "grouping": weights.grouping * grouping,
        "presence": weights.presence * presence_loss(output.presence_logits, masks.flatten(2).any(2), annotated),
        "text": weights.text * text_loss(output.text_vectors, bank, queries.row[asked]),
    }
    return torch.stack(list(parts.values())).sum(0), parts


def tumor_loss(
    answer: TumorAnswer,
    masks: Tensor,
    annotated: Tensor,
    absent: Tensor,
    bank: Tensor,
    target: Tensor,
    weights: LossWeights | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the tumour queries learn from.

    Args:
        answer: to L lesions. masks: (B, L, X, Y, Z). annotated: (B, L).
        absent: (B, L), lesions that cannot be in this volume, annotated or not, since their host is not.
        bank: (N, E). target: (L,) bank row of each lesion.

    Returns:
        The loss per sample (B,), and its parts (B,) by name.
    """
    weights = weights or LossWeights()
    dice, cross_entropy = mask_losses(answer.mask_logits, masks, annotated)
    present = masks.flatten(2).any(2) & annotated.bool()
    parts = {
        "dice": weights.dice * dice,
        "cross_entropy": weights.lesion_cross_entropy * cross_entropy,
        "presence": weights.presence * presence_loss(answer.presence_logits, present, annotated.bool() | absent),
        "text": weights.text * text_loss(answer.text_vectors, bank, target),
    }
    return torch.stack(list(parts.values())).sum(0), parts


def presence_loss(logits: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of "is it in this volume?" over the classes of which that is known; (B, K) each, gives (B,)."""
    loss = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    known = known.to(logits.dtype)
    return (loss * known).sum(1) / known.sum(1).clamp(min=1)
