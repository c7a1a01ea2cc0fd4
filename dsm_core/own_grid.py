"""How does an answer on the working grid come back to the scan's own? Resampled slab by slab, in bounded memory.

Axis legend: `Q` maps, `X Y Z` voxels of the scan's own grid, as stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from torch import Tensor

_SLAB_VOXELS = 16_000_000  # voxels of the scan's own grid resampled at a time: a few hundred MB


@dataclass(frozen=True)
class OwnGrid:
    """The scan's own grid and the working grid beside it.

    Attributes:
        shape: of the scan, as stored. affine: (4, 4) float64, voxel -> mm. working: affine of the working grid.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    working: Tensor

    def masks(self, probabilities: Tensor, threshold: float, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        """(Q, X, Y, Z) bool, and the probabilities as float16 if they are to be kept.

        Args:
            probabilities: (Q, ...) on the working grid.
        """
        masks = torch.zeros((len(probabilities), *self.shape), dtype=torch.bool)
        kept = torch.zeros(masks.shape, dtype=torch.float16) if keep else None
        for part, values in self._slabs(probabilities) if len(probabilities) else ():
            masks[:, part] = values >= threshold
            if kept is not None:
                kept[:, part] = values.half()
        return masks, kept

    def map(self, values: Tensor) -> Tensor:
        """(X, Y, Z) float32 of one map on the working grid."""
        whole = torch.zeros(self.shape)
        for part, found in self._slabs(values[None]):
            whole[part] = found[0]
        return whole

    def _slabs(self, maps: Tensor) -> Iterator[tuple[slice, Tensor]]:
        resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)
        working = MetaTensor(maps.cpu(), affine=self.working)
        thickness = max(1, _SLAB_VOXELS // (self.shape[1] * self.shape[2] * max(1, len(maps))))
        for start in range(0, self.shape[0], thickness):
            stop = min(start + thickness, self.shape[0])
            shift = np.eye(4)
            shift[0, 3] = start
            size = (stop - start, *self.shape[1:])
            slab = resample(working, dst_affine=torch.as_tensor(self.affine @ shift), spatial_size=size)
            yield slice(start, stop), torch.as_tensor(slab).as_subclass(Tensor)
