"""What do the tumour queries see of a scan? The visual prompt: where and how it departs from health.

Axis legend: B batch, C channels, O organs, X Y Z voxels in RAS+ order of the latent (half the volume's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_core.model.anatomy import Anatomy
from dsm_core.model.diffusion import TissuePrior, standardise
from dsm_core.model.haar import LATENT_CHANNELS
from dsm_core.model.layers import depth_to_space

PROMPT_CHANNELS = 4 * LATENT_CHANNELS
SPREADS = 3.0  # standard deviations of a residual or a deviation to one unit of the prompt


@dataclass(frozen=True)
class OrganReading:
    """What the organ queries see in a scan.

    Attributes:
        probabilities: (B, O, 2X, 2Y, 2Z) of each organ of the context.
        queries: (B, O + 1, Q) after grouping, the void last.
        eighth, quarter: features, (B, F, X/4, Y/4, Z/4) and (B, F, X/2, Y/2, Z/2).
    """

    probabilities: Tensor
    queries: Tensor
    eighth: Tensor
    quarter: Tensor


@dataclass(frozen=True)
class VisualPrompt:
    """A scan as the tumour queries see it. It carries no gradient to what it was made with.

    Attributes:
        channels: (B, PROMPT_CHANNELS, X, Y, Z), four parts of as many channels as the latent has: residual of the prior
            standardised per organ and channel; trivial deviation; deviation from the nearest organ; probability of any
            organ.
        hidden: (B, top, X, Y, Z), the denoiser's hidden map.
        organs: (B, O, X, Y, Z), probability of each organ.
        organ_queries: (B, O + 1, Q) after grouping, the void last.
        eighth, quarter: features, (B, F, X/4, Y/4, Z/4) and (B, F, X/2, Y/2, Z/2).
    """

    channels: Tensor
    hidden: Tensor
    organs: Tensor
    organ_queries: Tensor
    eighth: Tensor
    quarter: Tensor

    @property
    def anomaly(self) -> Tensor:
        """(B, 1, 2X, 2Y, 2Z): size of the residual in standard deviations, whatever may have caused it."""
        return F.interpolate(SPREADS * self.channels[:, :1].abs(), scale_factor=2, mode="trilinear")

    @property
    def deviation(self) -> Tensor:
        """(B, 1, 2X, 2Y, 2Z): every voxel against its organ's mean, in standard deviations: the trivial answer."""
        blocks = self.channels[:, LATENT_CHANNELS : 2 * LATENT_CHANNELS]
        return depth_to_space(SPREADS * blocks[:, None])

    def __getitem__(self, sample: slice) -> VisualPrompt:
        """Some of the samples."""
        return VisualPrompt(*(getattr(self, part.name)[sample] for part in fields(self)))

    def to(self, dtype: torch.dtype) -> VisualPrompt:
        """The same in another floating type."""
        return VisualPrompt(*(getattr(self, part.name).to(dtype) for part in fields(self)))

    def crop(self, start: Sequence[int], size: Sequence[int]) -> VisualPrompt:
        """A box of the latent; its corner and size are multiples of 4, so that the coarse maps share it."""
        assert not any(n % 4 for n in (*start, *size)), f"a crop wants multiples of 4, found {start} and {size}"

        def box(x: Tensor, rate: int) -> Tensor:
            x0, y0, z0 = (n // rate for n in start)
            x1, y1, z1 = ((n + s) // rate for n, s in zip(start, size, strict=True))
            return x[..., x0:x1, y0:y1, z0:z1]

        return VisualPrompt(
            box(self.channels, 1), box(self.hidden, 1), box(self.organs, 1), self.organ_queries,
            box(self.eighth, 4), box(self.quarter, 2),
        )  # fmt: skip


def stack_prompts(prompts: Sequence[VisualPrompt]) -> VisualPrompt:
    """One batch of several."""
    return VisualPrompt(*(torch.cat([getattr(prompt, part.name) for prompt in prompts]) for part in fields(prompts[0])))


@torch.no_grad()
def visual_prompt(prior: TissuePrior, image: Tensor, anatomy: Anatomy, organ_text: Tensor) -> tuple[Tensor, Tensor]:
    """Channels and hidden map of the prompt; residual and hidden map are zero where the prior was never trained.

    Args:
        image: (B, 1, 2X, 2Y, 2Z). organ_text: (O, E).
    """
    residual, hidden = prior.residual(image, anatomy, organ_text)
    if prior.is_trained:
        residual = standardise(residual, anatomy)
    unusual = torch.cat([residual, anatomy.deviation, anatomy.beyond], 1) / SPREADS
    return torch.cat([unusual, anatomy.outline + 0.5], 1), hidden
