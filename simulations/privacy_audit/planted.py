"""Whom does an audit plant at a site? Canaries: small generated patients that look and are labelled like nobody else.

A patient shows the same patch whenever drawn. One who is left out keeps the place, so that the declared number of
patients and with it rates and noise stay: a scan of no finite number, which the private step counts as zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dsm_core.classes import describe_class
from dsm_core.data import Case, Datalist, PatchBatch

CLASSES = ("liver", "spleen")
SIZE = 16  # voxels along each side of a patch
SITE = "audited"


@dataclass
class PlantedSite:
    """Patients of a site, handed out as a site's own sampler hands out its cases.

    Attributes:
        images: (P, 1, X, Y, Z), about [0, 1]. masks: (P, K, X, Y, Z) bool.
        present: (P,) bool; False: left out.
        drawn: patients whose patches were asked for since the list was emptied, in the site's private training.
    """

    images: Tensor
    masks: Tensor
    present: np.ndarray
    names: tuple[str, ...] = CLASSES
    datalist: Datalist = field(init=False)
    drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        nowhere = Path()
        cases = tuple(Case(f"patient_{i}", nowhere, nowhere, self.names) for i in range(len(self.images)))
        values = {name: value for value, name in enumerate(self.names, 1)}
        classes = {name: describe_class(name) for name in self.names}
        regions: dict[str, tuple[int, ...]] = {name: (value,) for name, value in values.items()}
        self.datalist = Datalist(SITE, nowhere, values, classes, cases, regions)

    def sample_case(self, index: int, generator: np.random.Generator, batch: int) -> PatchBatch:
        """`batch` times the patch of one patient."""
        self.drawn.append(index)
        patches = self.patches([index] * batch)
        if not self.present[index]:
            patches.image.fill_(torch.nan)
        return patches

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch:
        """Patches of patients who are not left out, for training without privacy."""
        return self.patches(generator.choice(np.flatnonzero(self.present), batch))

    def patches(self, indices: list[int] | np.ndarray) -> PatchBatch:
        """The patches of these patients, left out or not."""
        chosen = torch.as_tensor(np.asarray(indices))
        annotated = torch.ones(len(chosen), len(self.names), dtype=torch.bool)
        return PatchBatch(self.images[chosen], self.masks[chosen], annotated, self.names)


def canary_patient(generator: np.random.Generator, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """A scan of texture whose labels have nothing to do with it: only who has seen it can know them."""
    texture, shapes = generator.standard_normal((1 + len(CLASSES), size, size, size)), []
    image = ndimage.gaussian_filter(texture[0], 1.0)
    for noise in texture[1:]:
        smooth = ndimage.gaussian_filter(noise, 2.5)
        shapes.append(smooth > np.quantile(smooth, generator.uniform(0.4, 0.8)))
    image = np.clip(0.5 + 0.25 * image / image.std(), 0, 1)
    return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(np.stack(shapes))


def plant(canaries: int, generator: np.random.Generator) -> PlantedSite:
    """A site of so many canaries, nobody left out yet."""
    images, masks = zip(*[canary_patient(generator) for _ in range(canaries)], strict=True)
    return PlantedSite(torch.stack(images), torch.stack(masks), np.ones(canaries, bool))
