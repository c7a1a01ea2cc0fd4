"""Which patch does a training step see? Random crops of a site's volumes, half-known classes marked as such.

Axes: `B` patches, `K` classes that the site labels, `X Y Z` voxels in RAS+ order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsm_core.classes import ClassKind
from dsm_core.config import DataConfig
from dsm_core.data.augmentation import change_intensity, draw_geometry, sample_box
from dsm_core.data.datalist import Datalist
from dsm_core.data.volumes import SiteVolumes, Volume, class_masks

LESION_SHARE = 2.0  # a lesion is drawn as a crop's centre this much more often than an organ
# Centres kept a case and class: enough to cover a structure evenly, small enough to keep for every case.
_CENTRES = 4096


@dataclass
class PatchBatch:
    """Patches of one site.

    Attributes:
        image: (B, 1, X, Y, Z) float32, about [0, 1]; outside the scan is air (0).
        masks: (B, K, X, Y, Z) bool.
        annotated: (B, K) bool; False: the class is unknown in this patch, whatever its mask says.
        names: the K classes, sorted.
    """

    image: Tensor
    masks: Tensor
    annotated: Tensor
    names: tuple[str, ...]

    def to(self, device: torch.device) -> PatchBatch:
        """The same batch on a device."""
        return PatchBatch(self.image.to(device), self.masks.to(device), self.annotated.to(device), self.names)


def join_patches(parts: Sequence[PatchBatch]) -> PatchBatch:
    """One batch of several; a class that a part does not know is not annotated there."""
    names = tuple(sorted({name for part in parts for name in part.names}))
    image = torch.cat([part.image for part in parts])
    masks = torch.zeros(len(image), len(names), *image.shape[2:], dtype=torch.bool)
    annotated = torch.zeros(len(image), len(names), dtype=torch.bool)
    start = 0
    for part in parts:
        stop, columns = start + len(part.image), [names.index(name) for name in part.names]
        masks[start:stop, columns], annotated[start:stop, columns] = part.masks, part.annotated
        start = stop
    return PatchBatch(image, masks, annotated, names)


class PatchSampler:
    """Draws patches: `data.foreground_share` of them around a voxel of a class, lesions twice as often as organs.

    Every number comes from the caller's generator, so equal generators give equal patches.

    Raises:
        ValueError: no case of the site is annotated, or volumes and cases differ in number.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        datalist: Datalist,
        data: DataConfig,
        augment: bool = True,
        names: Sequence[str] | None = None,
    ) -> None:
        """A sampler of a site.

        Args:
            names: the classes whose masks are wanted; all that the site labels where this is absent.
        """
        if len(volumes) != len(datalist.cases):
            raise ValueError(f"{len(volumes)} volumes for {len(datalist.cases)} cases; wants one volume a case")
        self.volumes, self.datalist, self.data, self.augment = volumes, datalist, data, augment
        self.names = datalist.labelled_classes if names is None else tuple(sorted(names))
        shares = np.array([LESION_SHARE if datalist.classes[n].kind is ClassKind.LESION else 1.0 for n in self.names])
        self._shares = shares / shares.sum()
        self._cases = [i for i, case in enumerate(datalist.cases) if set(self.names) & set(case.annotated)]
        if not self._cases:
            raise ValueError(f"site {datalist.site} has no annotated case to draw patches from")
        self._centres: dict[int, dict[str, np.ndarray]] = {}
        self._lock = threading.Lock()

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch:
        """`batch` patches from cases of the whole site."""
        return self._stack([self._draw(generator) for _ in range(batch)])

    def sample_case(self, index: int, generator: np.random.Generator, batch: int) -> PatchBatch:
        """`batch` patches of one case, for training that samples patients (differential privacy)."""
        return self._stack([self._draw(generator, index) for _ in range(batch)])

    def _stack(self, patches: list[tuple[Tensor, Tensor, list[bool]]]) -> PatchBatch:
        images, masks, annotated = zip(*patches, strict=True)
        return PatchBatch(torch.stack(images), torch.stack(masks), torch.tensor(annotated), self.names)

    def _draw(self, generator: np.random.Generator, index: int | None = None) -> tuple[Tensor, Tensor, list[bool]]:
        wants_class = generator.random() < self.data.foreground_share
        name = self.names[int(generator.choice(len(self.names), p=self._shares))]
        if index is None:
            # The class first, then a case that annotates it: else the only cases of a rare class would drown.
            pool = [i for i in self._cases if not wants_class or name in self.datalist.cases[i].annotated]
            index = int(pool[generator.integers(len(pool))])
        volume = self._volume(index)
        centre = self._centre(index, volume, name if wants_class else None, generator)
        image, label = sample_box(volume, centre, self.data.patch, draw_geometry(generator) if self.augment else None)
        if self.augment:
            image = change_intensity(image, generator)
        known = [name in self.datalist.cases[index].annotated for name in self.names]
        return image, class_masks(label, self.names, self.datalist), known

    def _volume(self, index: int) -> Volume:
        return self.volumes.compact(index) if isinstance(self.volumes, SiteVolumes) else self.volumes[index]

    def _centre(self, index: int, volume: Volume, name: str | None, generator: np.random.Generator) -> np.ndarray:
        size, patch = np.array(volume.image.shape[1:]), np.array(self.data.patch)
        low, high = np.minimum(patch / 2, size / 2), np.maximum(size - patch / 2, size / 2)
        if name is not None:
            present = self._present(index, volume)
            if name not in present and present:
                name = list(present)[generator.integers(len(present))]
            if name in present:
                voxel = present[name][generator.integers(len(present[name]))]
                return np.clip(voxel + generator.uniform(-patch / 3, patch / 3), low, high)
        return generator.uniform(low, high)

    def _present(self, index: int, volume: Volume) -> dict[str, np.ndarray]:
        with self._lock:
            if index not in self._centres:
                assert volume.label is not None
                found = {}
                for name in self.names:
                    if name not in self.datalist.cases[index].annotated:
                        continue
                    voxels = class_masks(volume.label, (name,), self.datalist)[0].nonzero()
                    if len(voxels):
                        found[name] = voxels[:: -(-len(voxels) // _CENTRES)].numpy().astype(np.int16)
                self._centres[index] = found
            return self._centres[index]
