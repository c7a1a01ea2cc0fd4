"""Class rows and text: how the name of a class becomes a query.

Axis legend: B batch, Q queries, C query channels, E text width, N classes of the text space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsm_core.model.layers import MLP


@dataclass(frozen=True)
class QuerySet:
    """What a forward pass asks for: organs first, then lesions.

    Attributes:
        names: Q names or phrases; the organs stand first.
        organs: how many of them are organs.
        context: how many of the organs have been trained; they stand first, and a scan's anatomy is made of them.
        text: (Q, E) text vectors.
        row: (Q,) class row of a query, -1 for a phrase that has none.
        host: (Q - organs, context + 1) weights of a lesion's host organs: one where they are known, else a guess from
            the text that sums to one; the last column means "anywhere".
        asked: positions of the queries whose masks are wanted; the other organs only give context.
    """

    names: tuple[str, ...]
    organs: int
    context: int
    text: Tensor
    row: Tensor
    host: Tensor
    asked: tuple[int, ...]

    @property
    def asked_organs(self) -> tuple[int, ...]:
        return tuple(i for i in self.asked if i < self.organs)

    @property
    def asked_lesions(self) -> tuple[int, ...]:
        return tuple(i for i in self.asked if i >= self.organs)

    @property
    def asked_names(self) -> tuple[str, ...]:
        return tuple(self.names[i] for i in self.asked)


class Rows(nn.Module):
    """A learned row per class, in a leaf module so that per-sample gradients are exact and cheap under Opacus."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))

    def forward(self, anchor: Tensor) -> Tensor:
        """(N, C) expanded to (B, N, C); `anchor` (B, ...) gives only the batch size."""
        return self.weight.expand(len(anchor), *self.weight.shape)


class ClassRows(nn.Module):
    """Everything whose first axis is the class; in a federation a row is averaged over the sites that labelled it.

    `evidence` counts the annotated cases behind a row: zero means that nobody has trained it.
    """

    evidence: Tensor

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.residual = Rows(classes, width)
        self.bias = Rows(classes, 1)
        self.register_buffer("evidence", torch.zeros(classes))


class SharedVector(nn.Module):
    """One learned vector for all, as a leaf module (see `Rows`)."""

    def __init__(self, width: int, spread: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width) * spread)

    def forward(self, anchor: Tensor) -> Tensor:
        """(C,) expanded to (B, 1, C)."""
        return self.weight.expand(len(anchor), 1, -1)


class TextToQuery(nn.Module):
    """query_c = LayerNorm(MLP(text_c) + residual_c); the residual is zero for a class that nobody has trained."""

    def __init__(self, text_width: int, width: int):
        super().__init__()
        self.mlp = MLP(text_width, 2 * width, width)
        self.scale = text_width**0.5
        self.norm = nn.LayerNorm(width)

    def forward(self, text: Tensor, residual: Tensor) -> Tensor:
        """Args: text (B, Q, E), unit length; residual (B, Q, C). Returns (B, Q, C)."""
        return self.norm(self.mlp(text * self.scale) + residual)


def gather_rows(rows: Tensor, row: Tensor) -> Tensor:
    """Rows (B, N, C) of the queries (Q,), zero where a query has no row (-1): (B, Q, C)."""
    picked = rows[:, row.clamp(min=0)]
    return picked * (row >= 0).to(picked.dtype)[None, :, None]


def organs_meant(host: str | None, organs: Sequence[str]) -> list[int]:
    """Places of the organs that the name of a host means: that organ, and its sides ("kidney": left kidney too).

    Args:
        organs: names; none of them need be meant.
    """
    return [place for place, name in enumerate(organs) if host and f" {name}".endswith(f" {host}")]


def host_weights(lesion_text: Tensor, organ_text: Tensor, threshold: float = 0.3, temperature: float = 0.05) -> Tensor:
    """How much each organ is the host of each lesion, from text alone: softmax over organ similarities.

    A last column of constant similarity `threshold` means "anywhere": a lesion whose text resembles no organ is not
    confined. Measured on centred CLIP ViT-B/32: liver / liver tumor 0.74, other organs far below.

    Args:
        lesion_text: (L, E) unit vectors. organ_text: (O, E) unit vectors.

    Returns:
        (L, O + 1), rows sum to one.
    """
    similarity = lesion_text @ organ_text.T
    anywhere = similarity.new_full((len(similarity), 1), threshold)
    return torch.softmax(torch.cat([similarity, anywhere], 1) / temperature, dim=1)
