"""How would a lesion look if it were brighter than its host instead of darker, or stood out less?

The prior hides all organs at once, so what it expects at a lesion does not depend on the lesion: a prompt of the same
scan with another contrast follows from this one, without drawing a voxel. Bright lesions are rare (one in eight of the
generated ones), and what finds the unusual must not learn that it is dark.

Axis legend: B crops, X Y Z voxels in RAS+ order of the latent (half the volume's).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_core.model import VisualPrompt, space_to_depth
from dsm_core.model.haar import LATENT_CHANNELS

TURNED_SHARE = 0.12  # share of the crops whose lesions change from dark to bright, or from bright to dark
_FAINTER = (0.7, 1.2)  # by which a lesion's contrast is multiplied in every crop


def draw_contrast(draw: np.random.Generator) -> float:
    """By what a lesion's contrast is multiplied; below 0 dark turns bright."""
    sign = -1.0 if draw.random() < TURNED_SHARE else 1.0
    return sign * float(draw.uniform(*_FAINTER))


def with_contrast(prompt: VisualPrompt, lesion: Tensor, factor: float) -> VisualPrompt:
    """The prompt of the scan whose lesion departs `factor` times as far from what is expected there.

    Args:
        lesion: (B, 1, 2X, 2Y, 2Z) bool.
    """
    within = lesion.to(prompt.channels)
    blocks = F.avg_pool3d(within, 2).expand(-1, LATENT_CHANNELS, -1, -1, -1)
    fine = space_to_depth(within)
    share = torch.cat([blocks, fine, fine, torch.zeros_like(fine)], 1)  # an organ is where it is, whatever its contrast
    return replace(prompt, channels=prompt.channels * (1 + (factor - 1) * share))
