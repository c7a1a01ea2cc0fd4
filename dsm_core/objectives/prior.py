"""Stage 2, prior: the denoiser learns healthy tissue on crops, tumours left out; everything else is frozen.

Axis legend: B crops, C channels, O organs, X Y Z voxels in RAS+ order of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import EllipsisType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_core.classes import ClassKind
from dsm_core.config import TrainConfig
from dsm_core.data import Datalist, class_masks
from dsm_core.model import Anatomy, draw_corruption, stack_anatomies
from dsm_core.objectives.frozen import FrozenMaps
from dsm_core.scan_reading import padded
from dsm_core.stages import MOVING, PRIOR

Box = tuple[EllipsisType, slice, slice, slice]


@dataclass(frozen=True)
class PriorBatch:
    """Crops of scans.

    Attributes:
        image: (B, 1, 2X, 2Y, 2Z) in [0, 1].
        healthy: (B, 1, X, Y, Z), zero where a tumour is annotated, or one voxel from it.
    """

    image: Tensor
    anatomy: Anatomy
    healthy: Tensor


class PriorObjective:
    """Masked denoising of healthy tissue."""

    trained: tuple[str, ...] = MOVING[PRIOR].prefixes
    rows: tuple[str, ...] = ()
    shares_draws = False

    def __init__(self, maps: FrozenMaps, datalist: Datalist, config: TrainConfig) -> None:
        self.maps, self.datalist, self.config = maps, datalist, config
        self.batch = config.crops
        # Every scan shows healthy tissue; what a site has labelled only says where not to look.
        self.names = datalist.labelled_classes
        self._size = tuple(n // 2 for n in maps.data.crop)

    def sample(self, draw: np.random.Generator, batch: int) -> PriorBatch:
        return self.join([self._crop(int(draw.integers(len(self.datalist.cases))), draw) for _ in range(batch)])

    def sample_case(self, index: int, draw: np.random.Generator, batch: int) -> PriorBatch:
        return self.join([self._crop(index, draw) for _ in range(batch)])

    def join(self, parts: Sequence[PriorBatch]) -> PriorBatch:
        return PriorBatch(
            torch.cat([part.image for part in parts]),
            stack_anatomies([part.anatomy for part in parts]),
            torch.cat([part.healthy for part in parts]),
        )

    def public_batch(self, batch: int) -> PriorBatch:
        """Crops of noise within organs of noise."""
        generator = torch.Generator().manual_seed(0)

        def noise(channels: int, scale: int = 1) -> Tensor:
            return torch.rand(batch, channels, *(scale * n for n in self._size), generator=generator)

        organs = max(1, len(self.maps.organ_text()))
        anatomy = Anatomy(noise(organs), noise(8) - 0.5, 2 * noise(1) - 1, noise(8), noise(8))
        return PriorBatch(noise(1, scale=2), anatomy, torch.ones(batch, 1, *self._size))

    def losses(self, batch: PriorBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        corruption = draw_corruption(len(batch.image), self._size, generator)
        text = self.maps.organ_text()
        text = text if len(text) else text.new_zeros(1, text.shape[1])
        loss = self.maps.model.prior(batch.image, batch.anatomy, text, batch.healthy, corruption)
        return loss, {"denoising": loss}

    def model_changed(self) -> None:
        self.maps.model_changed()

    def _crop(self, index: int, draw: np.random.Generator) -> PriorBatch:
        case = self.maps.anatomy(index)
        organs = case.anatomy.organs[0]
        found = [organ for organ in (organs > 0.5) if organ.any()]
        centre = None
        if found:
            voxels = found[int(draw.integers(len(found)))].nonzero()
            centre = voxels[int(draw.integers(len(voxels)))].numpy()
        start = draw_corner(organs.shape[1:], self._size, draw, centre)
        low, high = box(start, self._size), box(start, self._size, scale=2)
        parts = {part.name: getattr(case.anatomy, part.name)[low].float() for part in fields(Anatomy)}
        return PriorBatch(case.image[high].float(), Anatomy(**parts), self._healthy(index, high))

    def _healthy(self, index: int, where: Box) -> Tensor:
        volume = self.maps.volumes[index]
        lesions = [n for n in self.datalist.cases[index].annotated if self.datalist.classes[n].kind is ClassKind.LESION]
        if volume.label is None or not lesions:
            return torch.ones(1, 1, *self._size)
        label = padded(volume.label, self.maps.data.patch)[where]
        lesion = class_masks(label, lesions, self.datalist).any(0)[None, None].float()
        return 1 - F.max_pool3d(F.max_pool3d(lesion, 2), 3, 1, 1)


def box(start: Sequence[int], size: Sequence[int], scale: int = 1) -> Box:
    """Index of a box of the last three axes, on a grid `scale` times as fine as its corner and size are given in."""
    x, y, z = (slice(scale * s, scale * (s + n)) for s, n in zip(start, size, strict=True))
    return ..., x, y, z


def draw_corner(
    volume: Sequence[int], size: Sequence[int], draw: np.random.Generator, centre: np.ndarray | None, step: int = 1
) -> tuple[int, int, int]:
    """Corner of a box near a voxel, or anywhere, on multiples of `step`, inside the volume."""
    room = np.array(volume) - np.array(size)
    if centre is None:
        corner = draw.uniform(0, room)
    else:
        corner = centre - np.array(size) / 2 + draw.uniform(-1 / 4, 1 / 4, 3) * np.array(size)
    x, y, z = (np.clip(np.round(corner / step) * step, 0, room)).astype(int).tolist()
    return x, y, z
