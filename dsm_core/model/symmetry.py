"""How does a scan look from another side? The 48 symmetries of a cube, exact for every map that a prompt holds.

A lesion has no left and right of its own, so what finds it may be trained on any turn of a crop. Never used where the
anatomy is learned: left and right kidney are different classes.

Axis legend: B batch, C channels, X Y Z voxels in RAS+ order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dsm_core.model.haar import LATENT_CHANNELS
from dsm_core.model.prompt import VisualPrompt


@dataclass(frozen=True)
class Symmetry:
    """A new order of the axes, then mirrors: axis i of the result is axis `order[i]`, reversed where `mirrored[i]`."""

    order: tuple[int, int, int]
    mirrored: tuple[bool, bool, bool]

    def turn_map(self, x: Tensor) -> Tensor:
        """(..., X, Y, Z), every voxel moved as it is."""
        lead = x.dim() - 3
        x = x.permute(*range(lead), *(lead + axis for axis in self.order))
        return x.flip([lead + axis for axis in range(3) if self.mirrored[axis]])

    def turn_blocks(self, x: Tensor) -> Tensor:
        """(B, 8, X, Y, Z) of `space_to_depth`: the voxels within each block move as well."""
        places = torch.arange(8).reshape(2, 2, 2)
        return self.turn_map(x)[:, self.turn_map(places).flatten()]

    def turn_wavelet(self, x: Tensor) -> Tensor:
        """(B, 8, X, Y, Z) of `to_latent`: a detail along a mirrored axis changes its sign."""
        places = torch.arange(8).reshape(2, 2, 2).permute(self.order)
        odd = torch.zeros(2, 2, 2, dtype=torch.long)
        for axis, is_mirrored in enumerate(self.mirrored):
            odd.select(axis, 1).add_(int(is_mirrored))
        sign = (1 - 2 * (odd % 2)).flatten().to(x)
        return self.turn_map(x)[:, places.flatten()] * sign[:, None, None, None]

    def turn_prompt(self, prompt: VisualPrompt) -> VisualPrompt:
        """The prompt of the turned scan, as far as features that were learned on upright scans can tell."""
        residual, *blocks = prompt.channels.split(LATENT_CHANNELS, 1)
        channels = [self.turn_wavelet(residual), *(self.turn_blocks(part) for part in blocks)]
        turned = {name: self.turn_map(getattr(prompt, name)) for name in ("hidden", "organs", "eighth", "quarter")}
        return replace(prompt, channels=torch.cat(channels, 1), **turned)


def draw_symmetry(draw: np.random.Generator) -> Symmetry:
    """Any of the 48, each as likely."""
    x, y, z = (int(axis) for axis in draw.permutation(3))
    mirrored = draw.random(3) < 0.5
    return Symmetry((x, y, z), (bool(mirrored[0]), bool(mirrored[1]), bool(mirrored[2])))
