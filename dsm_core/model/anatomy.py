"""What does the prior know of a scan besides its voxels? Where its organs lie and how bright each of them is.

The organ map is the model's own, so everything here can be computed at any site for any scan, without a label.
Axis legend: B batch, O organs, X Y Z voxels in RAS+ order of the latent (half the volume's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_core.model.layers import dilate, space_to_depth

CORE = 0.8  # an organ's brightness is read where the model is this sure: voxels at its edge mix two tissues
CLOSING = 3  # latent voxels; a tumour that the organ map leaves out of its organ is taken in again
REACH = 5  # latent voxels; edge of the cube around an organ in which a tumour of it may bulge out
_OUTLIER = 2.0  # standard deviations beyond which a voxel has no say in its organ's mean and spread
_FEWEST, _MOST = 30, 200_000  # voxels of a core, fewer of which say nothing; of which the median is taken
_LEAST_SPREAD = 0.01  # of the image's [0, 1]
_REST = (0.5, 0.1)  # mean and spread that brightness is held against where no organ is near: about those of muscle
_LARGEST = 8.0  # standard deviations beyond which a voxel is no more unusual
# How much of an organ is felt a latent voxel from its surface, and up to four: the nearest one outweighs all others.
_FELT_CLOSE, _FELT_FAR, _NOWHERE = 0.05, 0.003, 1e-5


@dataclass(frozen=True)
class Anatomy:
    """The organs of a scan.

    Attributes:
        organs: (B, O, X, Y, Z) probability of each organ, holes closed.
        outline: (B, 8, X, Y, Z) probability of any organ in the 2x2x2 voxels of each block, less one half.
        level: (B, 1, X, Y, Z) mean brightness of the organs, -1 to 1, weighted by their share; 0 outside them.
        deviation: (B, 8, X, Y, Z) every voxel against the mean and spread of its own organ in this scan, in standard
            deviations; around organs 0, far from all against fixed numbers. The trivial idea of what is unusual.
        beyond: (B, 8, X, Y, Z) the same against the nearest organ, as strong at its surface and around it as inside: a
            tumour that bulges out of the organ map is seen here, and so is the fat around the organ.
    """

    organs: Tensor
    outline: Tensor
    level: Tensor
    deviation: Tensor
    beyond: Tensor

    def to(self, dtype: torch.dtype) -> Anatomy:
        """The same in another floating type."""
        return Anatomy(*(getattr(self, part.name).to(dtype) for part in fields(self)))


def stack_anatomies(anatomies: Sequence[Anatomy]) -> Anatomy:
    """One batch of several."""
    return Anatomy(*(torch.cat([getattr(one, part.name) for one in anatomies]) for part in fields(Anatomy)))


def read_anatomy(image: Tensor, probabilities: Tensor) -> Anatomy:
    """The anatomy of scans.

    Args:
        image: (B, 1, 2X, 2Y, 2Z) in [0, 1].
        probabilities: (B, O, 2X, 2Y, 2Z) of the model's own organ masks; O at least 1.
    """
    open_organs = F.avg_pool3d(probabilities, 2)
    organs = close_holes(open_organs)
    closed = probabilities + F.interpolate(organs - open_organs, scale_factor=2, mode="nearest")
    mean, spread = organ_statistics(image, closed)
    share = organs / organs.sum(1, keepdim=True).clamp(min=1)
    level = torch.einsum("boxyz,bo->bxyz", share, 2 * mean - 1)[:, None]
    outline = space_to_depth(closed.amax(1, keepdim=True)) - 0.5
    deviation, beyond = _deviation(image, closed, mean, spread), _beyond(image, closed, organs, mean, spread)
    return Anatomy(organs, outline, level, space_to_depth(deviation), space_to_depth(beyond))


def close_holes(organs: Tensor) -> Tensor:
    """Morphological closing of each organ's probability, (B, O, X, Y, Z) alike; never below what it was."""
    grown = F.max_pool3d(organs, CLOSING, 1, CLOSING // 2)
    return torch.maximum(organs, -F.max_pool3d(-grown, CLOSING, 1, CLOSING // 2))


def near(organs: Tensor, reach: int = REACH) -> Tensor:
    """How surely there is any organ within reach of a voxel, (B, 1, X, Y, Z), 0 to 1.

    Args:
        organs: (B, O, X, Y, Z), probabilities. reach: edge of the cube around the voxel.
    """
    return (2 * dilate(organs.amax(1, keepdim=True), reach) - 1).clamp(min=0)  # a faint organ is none


def organ_statistics(image: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the brightness of each organ, (B, O) each, by voxels in its core that are no outliers.

    The core is what lies a voxel below the surface: voxels at the surface mix two tissues, and would make the spread of
    a spleen three times what it is. A tumour is an outlier: it starts from median and median deviation.
    """
    pairs = []
    for scan, organs in zip(image, probabilities, strict=True):
        sure = (organs > CORE).to(organs.dtype)
        below = 1 - dilate((1 - sure)[None], 3)[0]
        for organ, core in zip(sure > 0, below > 0, strict=True):
            values = scan[0][core if int(core.sum()) >= _FEWEST else organ]
            pairs.append(torch.stack(_robust(values)))
    found = torch.stack(pairs).reshape(*probabilities.shape[:2], 2)
    return found[..., 0], found[..., 1]


def _robust(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of (N,) values without outliers; 0 and 1 where there are none."""
    if not len(values):
        return values.new_zeros(()), values.new_ones(())
    few = values[:: -(-len(values) // _MOST)]
    middle = few.quantile(0.5)
    spread = 1.4826 * (few - middle).abs().quantile(0.5) + 1e-3  # of a normal distribution
    kept = values[(values - middle).abs() <= _OUTLIER * spread]
    return kept.mean(), (kept.var(correction=0) + 1e-6).sqrt()


def _deviation(image: Tensor, probabilities: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """(B, 1, 2X, 2Y, 2Z): deviation from each organ, weighted by the organs' shares of the voxel.

    So it fades at an organ's surface, where every voxel is unusual because it mixes two tissues.
    """
    deviation = _against(image, probabilities, mean, spread) / (probabilities.sum(1, keepdim=True) + 0.05)
    rest = (1 - near(probabilities, 2 * REACH - 1)) * (image - _REST[0]) / _REST[1]
    return (deviation + rest).clamp(-_LARGEST, _LARGEST)


def _beyond(image: Tensor, probabilities: Tensor, organs: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """(B, 1, 2X, 2Y, 2Z): deviation from the nearest organ; 0 where none is near.

    Args:
        organs: (B, O, X, Y, Z), the probabilities on the latent's grid.
    """
    far = close = F.avg_pool3d(organs, 3, 1, 1)
    for _ in range(3):
        far = F.avg_pool3d(far, 3, 1, 1)
    felt = organs + _FELT_CLOSE * close + _FELT_FAR * far
    share = torch.maximum(F.interpolate(felt, scale_factor=2, mode="trilinear"), probabilities)
    total = share.sum(1, keepdim=True)
    deviation = _against(image, share, mean, spread) / total.clamp(min=_NOWHERE)
    return torch.where(total > _NOWHERE, deviation.clamp(-_LARGEST, _LARGEST), 0.0)


def _against(image: Tensor, share: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """(B, 1, X, Y, Z): deviation from every organ in its standard deviations, summed by the organs' shares."""
    rate = 1 / (spread + _LEAST_SPREAD)
    slope = torch.einsum("boxyz,bo->bxyz", share, rate)[:, None]
    return image * slope - torch.einsum("boxyz,bo->bxyz", share, rate * mean)[:, None]
