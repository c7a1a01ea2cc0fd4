"""What would healthy tissue look like here? A denoising diffusion prior, and how a scan departs from it.

The denoiser learns masked inpainting: given the organ map, the brightness of each organ and whatever is visible, it
predicts the clean latent under the mask, with tumours left out of its training. Where a scan departs from that
prediction, it departs from health. Diffusion after Ho et al. 2020 (arXiv:2006.11239), sampling after Song et al. 2021
(arXiv:2010.02502), both from diffusers.

Axis legend: B batch, C channels, O organs, E text width, X Y Z voxels in RAS+ order of the latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from dsm_core.model.anatomy import REACH, Anatomy
from dsm_core.model.haar import LATENT_CHANNELS, to_latent
from dsm_core.model.layers import dilate, norm_channels

TRAINING_STEPS = 1000
_TIME_WIDTH = 32
_SCALE_RANGE = (-6.0, 3.0)  # natural logarithm of the expected deviation
_LARGEST = 8.0  # standard deviations beyond which a departure from health says no more


class TimedBlock(nn.Module):
    """Two convolutions with a residual connection; the noise level shifts every channel of the first."""

    def __init__(self, inputs: int, outputs: int, time: int, stride: int = 1):
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm_first = nn.LayerNorm(outputs)  # of each voxel: see `VoxelBlock`
        self.shift = nn.Linear(time, outputs)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_second = nn.LayerNorm(outputs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = F.silu(norm_channels(self.norm_first, self.first(x)) + self.shift(time)[..., None, None, None])
        return F.silu(x + norm_channels(self.norm_second, self.second(x)))


class Denoiser(nn.Module):
    """A U-Net of three levels: noisy latent, what is visible, mask and anatomy -> clean latent and its uncertainty."""

    def __init__(self, text_width: int, widths: tuple[int, ...], organ_width: int = 8):
        super().__init__()
        top, middle, low = widths
        time = 2 * _TIME_WIDTH
        inputs = 3 * LATENT_CHANNELS + organ_width + 2
        self.width = top
        self.text_scale = text_width**0.5
        self.organ = nn.Linear(text_width, organ_width)
        self.time = nn.Linear(_TIME_WIDTH, time)
        self.down = nn.ModuleList(
            (TimedBlock(inputs, top, time), TimedBlock(top, middle, time, 2), TimedBlock(middle, low, time, 2))
        )
        self.up = nn.ModuleList((TimedBlock(low + middle, middle, time), TimedBlock(middle + top, top, time)))
        self.out = nn.Conv3d(top, 2 * LATENT_CHANNELS, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, 0.0)  # type: ignore[arg-type]

    def forward(
        self, noisy: Tensor, visible: Tensor, mask: Tensor, anatomy: Anatomy, organ_text: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict what lies under the mask.

        Args:
            noisy, visible: (B, C, X, Y, Z), the latent with noise and without.
            mask: (B, 1, X, Y, Z), one where the latent is hidden.
            organ_text: (O, E), so that an organ is known by its words and not by its place in a list.
            step: (B,) diffusion step, 0 (clean) to 999 (noise).

        Returns:
            The clean latent (B, C, X, Y, Z), the logarithm of the mean absolute deviation expected from it, and the
            hidden map (B, top, X, Y, Z) behind both.
        """
        names = self.organ(organ_text.expand(len(noisy), -1, -1) * self.text_scale)
        organs = torch.einsum("boxyz,boc->bcxyz", anatomy.organs, names)
        time = F.silu(self.time(_sinusoid(step)))
        context = torch.cat([noisy * mask, visible * (1 - mask), mask, organs, anatomy.outline, anatomy.level], 1)
        top = self.down[0](context, time)
        middle = self.down[1](top, time)
        low = self.down[2](middle, time)
        middle = self.up[0](torch.cat([_double(low, middle), middle], 1), time)
        top = self.up[1](torch.cat([_double(middle, top), top], 1), time)
        clean, scale = self.out(top).chunk(2, 1)
        return clean, scale.clamp(*_SCALE_RANGE), top


@dataclass(frozen=True)
class Corruption:
    """What a training step hides of a latent, drawn before anything is computed.

    Attributes:
        hidden: (B, 1, X, Y, Z), one where an organ may be hidden. step: (B,). noise: (B, C, X, Y, Z).
    """

    hidden: Tensor
    step: Tensor
    noise: Tensor


def draw_corruption(batch: int, size: tuple[int, ...], generator: torch.Generator) -> Corruption:
    """Numbers for latents (batch, C, *size)."""
    hidden = _random_cubes(batch, size, generator)
    step = torch.randint(0, TRAINING_STEPS, (batch,), generator=generator)
    # Half of the samples from pure noise: that is where the residual is read.
    step[torch.rand(batch, generator=generator) < 0.5] = TRAINING_STEPS - 1
    return Corruption(hidden, step, torch.randn(batch, LATENT_CHANNELS, *size, generator=generator))


class TissuePrior(nn.Module):
    """The healthy-tissue prior: its training loss and the residual of a scan."""

    def __init__(self, denoiser: Denoiser, refine_steps: int = 1):
        super().__init__()
        self.denoiser = denoiser
        self.refine_steps = refine_steps
        schedule = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "clip_sample": False}
        self._training: Any = DDPMScheduler(TRAINING_STEPS, **schedule)
        self._sampling: Any = DDIMScheduler(TRAINING_STEPS, **schedule)

    @property
    def is_trained(self) -> bool:
        """Whether training has begun: the last layer starts at zero."""
        return bool(self.denoiser.out.weight.any())

    def forward(
        self, image: Tensor, anatomy: Anatomy, organ_text: Tensor, healthy: Tensor, corruption: Corruption
    ) -> Tensor:
        """Masked denoising loss, (B,): Huber on the clean latent, Laplace likelihood of its own uncertainty.

        Args:
            image: (B, 1, 2X, 2Y, 2Z) in [0, 1].
            healthy: (B, 1, X, Y, Z), zero where a tumour is annotated: it teaches nothing.
        """
        latent = to_latent(image)
        mask = organ_mask(anatomy) * corruption.hidden.to(latent)
        step = corruption.step.to(latent.device)
        noisy = self._training.add_noise(latent, corruption.noise.to(latent), step)
        clean, scale, _ = self.denoiser(noisy, latent, mask, anatomy, organ_text, step)
        weight = mask * healthy * (0.1 + anatomy.organs.amax(1, keepdim=True))
        error = F.huber_loss(clean, latent, reduction="none", delta=0.1) / 0.1
        away = (clean.detach() - latent).abs()
        likelihood = away * torch.exp(-scale) + scale
        # The low-pass channel carries what a tumour changes; the details are mostly noise.
        channels = error.new_tensor([2.0] + [0.3] * (LATENT_CHANNELS - 1))[:, None, None, None]
        total = ((channels * error + 0.2 * likelihood) * weight).flatten(1).sum(1)
        return total / weight.flatten(1).sum(1).clamp(min=1)

    @torch.no_grad()
    def residual(self, image: Tensor, anatomy: Anatomy, organ_text: Tensor) -> tuple[Tensor, Tensor]:
        """Signed departure from health in units of the deviation expected there, (B, C, X, Y, Z); 0 far from organs.

        All organs are hidden at once: a tumour that is partly visible would be continued, not found. The second
        tensor is the denoiser's hidden map, (B, top, X, Y, Z). Both are zero before any training.
        """
        latent = to_latent(image)
        if not self.is_trained:
            return torch.zeros_like(latent), latent.new_zeros(len(latent), self.denoiser.width, *latent.shape[2:])
        mask = organ_mask(anatomy)
        generator = torch.Generator().manual_seed(0)
        noisy = torch.randn(latent.shape[1:], generator=generator).to(latent).expand_as(latent)
        for step in self._steps():
            every = step.to(latent.device).expand(len(latent))
            clean, scale, hidden = self.denoiser(noisy, latent, mask, anatomy, organ_text, every)
            if self.refine_steps > 1:
                noisy = self._sampling.step(clean, int(step), noisy).prev_sample
        return mask * (latent - clean) / scale.exp(), hidden

    def _steps(self) -> Tensor:
        if self.refine_steps == 1:
            return torch.tensor([TRAINING_STEPS - 1])
        self._sampling.set_timesteps(self.refine_steps)
        return self._sampling.timesteps.cpu()


def organ_mask(anatomy: Anatomy) -> Tensor:
    """(B, 1, X, Y, Z): the organs and what is close by."""
    return dilate((anatomy.organs.sum(1, keepdim=True) > 0.5).to(anatomy.organs.dtype), REACH)


def standardise(residual: Tensor, anatomy: Anatomy) -> Tensor:
    """Zero mean and unit spread within each organ and channel, (B, C, X, Y, Z); outliers have no say in either."""
    core = torch.where(anatomy.organs > 0.6, anatomy.organs, 0.0)
    kept = core
    for _ in range(3):
        count = kept.flatten(2).sum(2)[..., None] + 1e-3  # (B, O, 1)
        mean = torch.einsum("boxyz,bcxyz->boc", kept, residual) / count
        square = torch.einsum("boxyz,bcxyz->boc", kept, residual**2) / count
        spread = (square - mean**2).clamp(min=1e-4).sqrt()
        low = residual[:, None, 0] - mean[:, :, 0, None, None, None]
        kept = core * (low.abs() < 2 * spread[:, :, 0, None, None, None])
    share = anatomy.organs / (anatomy.organs.sum(1, keepdim=True) + 0.05)
    offset, scale = (torch.einsum("boxyz,boc->bcxyz", share, part) for part in (mean, spread))
    return ((residual - offset) / scale.clamp(min=1e-2)).clamp(-_LARGEST, _LARGEST) * share.sum(1, keepdim=True)


def _random_cubes(batch: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(B, 1, X, Y, Z): seven times in ten everything is hidden, else every second cube of 4 to 7 voxels."""
    masks = []
    for _ in range(batch):
        if float(torch.rand((), generator=generator)) < 0.7:
            masks.append(torch.ones(size))
            continue
        side = int(torch.randint(4, 8, (), generator=generator))
        offsets = torch.randint(0, side, (3,), generator=generator).tolist()
        places = [(torch.arange(n) + o) // side for n, o in zip(size, offsets, strict=True)]
        x, y, z = places
        hidden = (torch.rand([int(p.max()) + 1 for p in places], generator=generator) < 0.5).float()
        masks.append(hidden[x][:, y][:, :, z])
    return torch.stack(masks)[:, None]


def _sinusoid(step: Tensor) -> Tensor:
    """(B,) -> (B, 32) sines and cosines of the diffusion step (Vaswani et al. 2017, arXiv:1706.03762)."""
    half = _TIME_WIDTH // 2
    rates = torch.exp(-math.log(1e4) * torch.arange(half, device=step.device) / half)
    angles = step.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def _double(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="nearest")
