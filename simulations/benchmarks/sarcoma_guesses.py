"""Where would one guess a tumour without any model? In the middle of the scan, or in a window of brightness."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Method = Callable[[Tensor], tuple[Tensor, Tensor]]  # image (1, X, Y, Z) -> score and mask, (X, Y, Z) each


def ellipsoid(extents: Sequence[np.ndarray]) -> Method:
    """The ellipsoid in the middle of a scan, as large as the tumours are on average.

    Args:
        extents: of the training tumours, each (3,), as shares of their scan's edges.
    """
    half = np.mean(extents, 0) / 2

    def mark(image: Tensor) -> tuple[Tensor, Tensor]:
        axes = [torch.linspace(-0.5, 0.5, n) / h for n, h in zip(image.shape[1:], half, strict=True)]
        radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
        return -radius, radius < 1

    return mark


def window(images: Sequence[Tensor], truths: Sequence[Tensor]) -> Method:
    """The window of brightness that fits the training tumours best, by Dice."""
    grid = np.linspace(0.3, 0.8, 26)
    values = torch.cat([image[0].flatten() for image in images])
    held = torch.cat([truth.flatten() for truth in truths])
    counts = [np.histogram(values[mask].numpy(), grid)[0].cumsum() for mask in (held, ~held)]
    inside, outside = (np.concatenate([[0], count]) for count in counts)
    total = int(held.sum())
    pairs = [(i, j) for i in range(len(grid)) for j in range(i + 1, len(grid))]

    def dice(pair: tuple[int, int]) -> float:
        i, j = pair
        true = inside[j] - inside[i]
        return float(2 * true / (true + outside[j] - outside[i] + total))

    low, high = (float(grid[place]) for place in max(pairs, key=dice))

    def mark(image: Tensor) -> tuple[Tensor, Tensor]:
        score = -(image[0] - (low + high) / 2).abs()
        return score, score > -(high - low) / 2

    return mark
