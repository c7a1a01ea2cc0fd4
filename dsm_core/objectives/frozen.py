"""What do the frozen parts of the model make of every case? Kept per case, for as long as these parts do not change.

Axis legend: O organs, X Y Z voxels in RAS+ order of the latent (half the volume's).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dsm_core.config import DataConfig
from dsm_core.data import Volume
from dsm_core.device import placed
from dsm_core.model import DSM, Anatomy, OrganReading, VisualPrompt
from dsm_core.scan_reading import padded, read_organs
from dsm_core.stages import MOVING, ORGANS, PRIOR
from dsm_core.text_space import TextSpace

_MOST_KEPT = 4 << 30  # bytes of one site's maps; beyond, those that were not asked for the longest are made again
T = TypeVar("T")


@dataclass(frozen=True)
class CaseAnatomy:
    """A case as the organ queries see it.

    Attributes:
        image: (1, 1, 2X, 2Y, 2Z) float16, padded. anatomy: float16. reading: float16, without its probabilities.
    """

    image: Tensor
    anatomy: Anatomy
    reading: OrganReading


class FrozenMaps:
    """Anatomy and visual prompt of the cases of one site, each made when first asked for."""

    def __init__(self, model: DSM, text: TextSpace, volumes: Sequence[Volume], data: DataConfig) -> None:
        self.model, self.text, self.volumes, self.data = model, text, volumes, data
        self._anatomies: _Kept[CaseAnatomy] = _Kept(self._read)
        self._prompts: _Kept[VisualPrompt] = _Kept(self._prompt)
        self._lock = threading.RLock()
        self._is_current = False

    def model_changed(self) -> None:
        """The model was given other tensors: what is kept is held against them before it is used again."""
        self._is_current = False

    def anatomy(self, index: int) -> CaseAnatomy:
        """Of one case, by its place in the datalist."""
        with self._lock:
            self._check()
            return self._anatomies.get(index)

    def prompt(self, index: int) -> VisualPrompt:
        """Of one case, float16."""
        with self._lock:
            self._check()
            return self._prompts.get(index)

    def organ_text(self) -> Tensor:
        """(O, E): text of the trained organs, in the order of every anatomy; (0, E) where there are none."""
        queries = self.model.query_set([], self.text)
        return queries.text[: queries.context]

    def _check(self) -> None:
        if not self._is_current:
            organs = self._digest(MOVING[ORGANS].prefixes)
            self._anatomies.keep_only(organs)
            self._prompts.keep_only(organs + self._digest(MOVING[PRIOR].prefixes))
            self._is_current = True

    def _digest(self, parts: tuple[str, ...]) -> str:
        """Of the tensors of these parts; of the class rows, those of the trained organs only."""
        digest = hashlib.blake2b()
        rows = self.model.query_set([], self.text).row
        for name, tensor in self.model.state_dict().items():
            if name.startswith(parts):
                is_rows = name.startswith("class_rows.")
                held = tensor[rows] if is_rows else tensor
                digest.update(name.encode() + held.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _read(self, index: int) -> CaseAnatomy:
        image = padded(self.volumes[index].image.float(), self.data.patch)
        reading, _, _ = read_organs(self.model, image, self.model.query_set([], self.text), self.data)
        anatomy = self.model.anatomy(image[None], reading)
        halved = {name: getattr(reading, name).half() for name in ("queries", "eighth", "quarter")}
        unused = reading.probabilities[..., :0, :0, :0]
        return CaseAnatomy(image[None].half(), anatomy.to(torch.float16), OrganReading(unused, **halved))

    def _prompt(self, index: int) -> VisualPrompt:
        text = self.organ_text()
        case = placed(self._anatomies.get(index), text.device)
        prompt = self.model.prompt_of(case.image.float(), case.anatomy.to(torch.float32), case.reading, text)
        return placed(prompt.to(torch.float16), torch.device("cpu"))


class _Kept(Generic[T]):
    """Results by case, up to some bytes."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make, self._held, self._digest = make, OrderedDict[int, T](), ""
        self._bytes = 0

    def keep_only(self, digest: str) -> None:
        if digest != self._digest:
            self._held.clear()
            self._digest, self._bytes = digest, 0

    def get(self, index: int) -> T:
        if index not in self._held:
            made = self._held[index] = self._make(index)
            self._bytes += _size(made)
            while self._bytes > _MOST_KEPT and len(self._held) > 1:
                self._bytes -= _size(self._held.popitem(last=False)[1])
        self._held.move_to_end(index)
        return self._held[index]


def _size(held: Any) -> int:
    if isinstance(held, Tensor):
        return held.numel() * held.element_size()
    return sum(_size(getattr(held, part.name)) for part in fields(held))
