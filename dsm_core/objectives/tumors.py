"""Stage 3, tumours: the tumour queries and the rows of the lesions, on crops of visual prompts; all else is frozen.

To find a tumour that nobody labelled, every labelled one is hidden in turn: its row is dropped and its words are
changed, so that it is reached through its text alone. Absent lesions are asked for as well.

Axis legend: B crops, L lesions, X Y Z voxels in RAS+ order of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dsm_core.classes import ClassKind
from dsm_core.config import TrainConfig
from dsm_core.data import Datalist, class_masks
from dsm_core.losses import tumor_loss
from dsm_core.model import QueryDropout, QuerySet, VisualPrompt, draw_symmetry, stack_prompts
from dsm_core.objectives.contrast import draw_contrast, with_contrast
from dsm_core.objectives.frozen import FrozenMaps
from dsm_core.objectives.prior import box, draw_corner
from dsm_core.scan_reading import padded
from dsm_core.stages import MOVING, TUMORS

LESION_CENTRED = 0.6  # share of the crops around a lesion; the others lie around its host
_NEGATIVES = 2  # lesions that the site does not label, asked for in a step
_ABSENT = 0.1  # a host whose probability stays below this is not in the crop


def lesion_classes(datalist: Datalist) -> tuple[str, ...]:
    """Lesions that at least one case of a site annotates."""
    return tuple(n for n in datalist.labelled_classes if datalist.classes[n].kind is ClassKind.LESION)


@dataclass(frozen=True)
class TumorBatch:
    """Crops of visual prompts.

    Attributes:
        masks: (B, L, X, Y, Z) bool. annotated: (B, L) bool. names: the L lesions, sorted.
    """

    prompt: VisualPrompt
    masks: Tensor
    annotated: Tensor
    names: tuple[str, ...]


@dataclass
class TumorsObjective:
    """Lesion masks within their host, presence, and text."""

    maps: FrozenMaps
    datalist: Datalist
    config: TrainConfig
    trained: tuple[str, ...] = MOVING[TUMORS].prefixes
    shares_draws: bool = True  # which lesions are asked for, hidden and said in other words
    _query_sets: dict[tuple[str, ...], QuerySet] = field(default_factory=dict, init=False, repr=False)
    _places: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.names = self.rows = lesion_classes(self.datalist)
        self.batch = self.config.crops
        self._size = tuple(n // 2 for n in self.maps.data.crop)
        self._cases = {
            name: [i for i, case in enumerate(self.datalist.cases) if name in case.annotated] for name in self.names
        }
        bank = self.maps.text.classes
        self._others = [c.name for c in bank if c.kind is ClassKind.LESION and c.name not in self.names]

    def sample(self, draw: np.random.Generator, batch: int) -> TumorBatch:
        crops = []
        for _ in range(batch):
            name = self.names[int(draw.integers(len(self.names)))]
            cases = self._cases[name]
            crops.append(self._crop(cases[int(draw.integers(len(cases)))], name, draw))
        return self.join([*crops])

    def sample_case(self, index: int, draw: np.random.Generator, batch: int) -> TumorBatch:
        held = [name for name in self.names if index in self._cases[name]] or list(self.names)
        return self.join([self._crop(index, held[int(draw.integers(len(held)))], draw) for _ in range(batch)])

    def join(self, parts: Sequence[TumorBatch]) -> TumorBatch:
        names = tuple(sorted({name for part in parts for name in part.names}))
        size = parts[0].masks.shape[2:]
        total = sum(len(part.masks) for part in parts)
        masks, annotated = torch.zeros(total, len(names), *size, dtype=torch.bool), torch.zeros(total, len(names)) > 0
        start = 0
        for part in parts:
            stop, columns = start + len(part.masks), [names.index(name) for name in part.names]
            masks[start:stop, columns], annotated[start:stop, columns] = part.masks, part.annotated
            start = stop
        return TumorBatch(stack_prompts([part.prompt for part in parts]), masks, annotated, names)

    def public_batch(self, batch: int) -> TumorBatch:
        """Prompts of noise, every lesion of the site annotated."""
        generator = torch.Generator().manual_seed(0)
        model = self.maps.model
        x, y, z = self._size

        def noise(*shape: int) -> Tensor:
            return torch.rand(batch, *shape, generator=generator)

        features, queries = model.tumors.feature_width, model.void.weight.shape[0]
        organs = max(1, len(self.maps.organ_text()))
        prompt = VisualPrompt(
            channels=noise(model.tumors.path.stem.conv.in_channels, x, y, z),
            hidden=noise(model.prior.denoiser.width, x, y, z),
            organs=noise(organs, x, y, z),
            organ_queries=noise(len(self.maps.organ_text()) + 1, queries),
            eighth=noise(features, x // 4, y // 4, z // 4),
            quarter=noise(features, x // 2, y // 2, z // 2),
        )
        masks = noise(len(self.names), 2 * x, 2 * y, 2 * z) > 0.8
        return TumorBatch(prompt, masks, torch.ones(batch, len(self.names), dtype=torch.bool), self.names)

    def losses(self, batch: TumorBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        others = [name for name in self._others if name not in batch.names]  # a pooled batch knows other sites' lesions
        negatives = [others[i] for i in torch.randperm(len(others), generator=generator)[:_NEGATIVES]]
        asked = (*batch.names, *sorted(negatives))
        if asked not in self._query_sets:
            self._query_sets[asked] = self.maps.model.query_set(asked, self.maps.text)
        queries = self._query_sets[asked]
        count, extra = len(batch.masks), len(negatives)
        answer = self.maps.model.find_tumors(batch.prompt, queries, self._dropout(queries, count, generator))
        nowhere = batch.masks.new_zeros(count, extra, *batch.masks.shape[2:])
        return tumor_loss(
            answer,
            torch.cat([batch.masks, nowhere], 1),
            torch.cat([batch.annotated, batch.annotated.new_zeros(count, extra)], 1),
            answer.host.flatten(2).amax(2) < _ABSENT,
            self.maps.text.vectors.to(answer.mask_logits.device),
            queries.row[queries.organs :],
        )

    def model_changed(self) -> None:
        self.maps.model_changed()
        self._query_sets.clear()

    def _dropout(self, queries: QuerySet, batch: int, generator: torch.Generator) -> QueryDropout:
        """Whole classes hidden for a step: their rows are dropped, and other words for them are used."""
        count, width = queries.text.shape
        is_hidden = torch.rand(count, generator=generator) < self.config.text_only
        noise = torch.randn(batch, count, width, generator=generator) * (self.config.text_noise / width**0.5)
        for place in range(queries.organs, count):
            if is_hidden[place]:
                wordings = self.maps.text.wordings(queries.names[place])
                chosen = int(torch.randint(len(wordings), (), generator=generator))
                noise[:, place] += wordings[chosen] - queries.text[place].cpu()
        return QueryDropout((~is_hidden).to(queries.text).expand(batch, -1), noise.to(queries.text))

    def _crop(self, index: int, name: str, draw: np.random.Generator) -> TumorBatch:
        prompt = self.maps.prompt(index)
        places = self._lesion_places(index)
        wants_lesion = draw.random() < LESION_CENTRED
        voxels = places[name] if wants_lesion and len(places[name]) else self._host_places(prompt, name)
        centre = voxels[int(draw.integers(len(voxels)))].numpy() if len(voxels) else None
        corner = draw_corner(prompt.channels.shape[2:], self._size, draw, centre, step=4)
        volume, side = self.maps.volumes[index], draw_symmetry(draw)
        masks = torch.zeros(1, len(self.names), *(2 * n for n in self._size), dtype=torch.bool)
        if volume.label is not None:
            label = padded(volume.label, self.maps.data.patch)[box(corner, self._size, scale=2)]
            masks = class_masks(label, self.names, self.datalist)[None]
        known = torch.tensor([[name in self.datalist.cases[index].annotated for name in self.names]])
        crop = prompt.crop(corner, self._size).to(torch.float32)
        crop = with_contrast(crop, masks.any(1, keepdim=True), draw_contrast(draw))
        return TumorBatch(side.turn_prompt(crop), side.turn_map(masks), known, self.names)

    def _lesion_places(self, index: int) -> dict[str, Tensor]:
        """Latent voxels of each lesion of a case, (N, 3)."""
        if index not in self._places:
            volume = self.maps.volumes[index]
            found = {name: torch.zeros(0, 3, dtype=torch.int16) for name in self.names}
            for name in sorted(set(self.names) & set(self.datalist.cases[index].annotated)):
                assert volume.label is not None
                found[name] = (class_masks(volume.label, (name,), self.datalist)[0].nonzero() // 2).to(torch.int16)
            self._places[index] = found
        return self._places[index]

    def _host_places(self, prompt: VisualPrompt, name: str) -> Tensor:
        queries = self.maps.model.query_set([name], self.maps.text)
        if not queries.context:
            return torch.zeros(0, 3)
        within = torch.einsum("o,oxyz->xyz", queries.host[0, :-1], prompt.organs[0].float())
        return (within > 0.5).nonzero()
