"""Which vector has a lesion's phrase where no text tower is at hand? Its organ's, moved as lesions lie from organs.

In a bank of CLIP vectors lesions of one kind (tumour, cyst, thrombus) lie in much the same direction from their
organs. Each lesion of the CLIP ViT-B/32 bank of 45 classes, composed from the others: mean cosine 0.77 with its own
vector, and nearest to it of all lesions for 16 of 18 (`tests/dsm_core/test_text_composition.py`).

Axis legend: `k` phrases, `E` text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dsm_core.classes import ClassInfo, ClassKind, describe_class
from dsm_core.hashed_words import content_words
from dsm_core.text_space import TextSpace, TextSpaceError

_KINDS = ("cyst", "thrombus")  # every other lesion counts as a tumour


class Composition:
    """A text space in an encoder's place: knows lesions whose words name an organ of the space, and nothing else."""

    name = "composed from the vectors of the text space"

    def __init__(self, space: TextSpace) -> None:
        self._space = space
        known = [*space.classes, *(describe_class(phrase) for phrase in space.phrases)]
        self._organs = {info.name: space.encode([info.name])[0] for info in known if info.kind is ClassKind.ORGAN}
        self._steps: dict[str, list[Tensor]] = {}
        for info in known:
            host = self._organ(info.host)
            if info.kind is ClassKind.LESION and host is not None:
                self._steps.setdefault(_kind(info), []).append(space.encode([info.name])[0] - host)

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Unit vectors that have the composed direction once the mean is taken away, (k, E) float32.

        Raises:
            TextSpaceError: a phrase that is no lesion of an organ of the text space; all are listed.
        """
        infos = [describe_class(phrase) for phrase in phrases]
        found = [self._compose(info) for info in infos]
        if lost := [info.name for info, vector in zip(infos, found, strict=True) if vector is None]:
            raise TextSpaceError(
                f"the text space does not hold {', '.join(map(repr, lost))}, its encoder ({self._space.encoder}) is "
                "not at hand here, and the words name no lesion of an organ that it holds; have them encoded with "
                f"`dsm-site encode`, give --text-weights, or query one of {', '.join(self._space.names)}"
            )
        return torch.stack([_before_centring(vector, self._space.mean) for vector in found if vector is not None])

    def left_out(self, phrase: str) -> str:
        """Nothing: only the words for organ and lesion count."""
        return ""

    def _compose(self, info: ClassInfo) -> Tensor | None:
        host, steps = self._organ(info.host), self._steps.get(_kind(info))
        if info.kind is not ClassKind.LESION or host is None or not steps:
            return None
        return normalize(host + torch.stack(steps).mean(dim=0), dim=0)

    def _organ(self, name: str | None) -> Tensor | None:
        """The organ's vector, or the direction between those of its two sides."""
        sides = [vector for organ, vector in self._organs.items() if name and f" {organ}".endswith(f" {name}")]
        own = self._organs.get(name or "")
        return own if own is not None else normalize(torch.stack(sides).mean(dim=0), dim=0) if sides else None


def with_composition(space: TextSpace) -> TextSpace:
    """The text space, able to compose the phrases of lesions where it has no encoder."""
    return space if space.phrase_encoder is not None else replace(space, phrase_encoder=Composition(space))


def _kind(info: ClassInfo) -> str:
    words = content_words(info.name)
    return next((kind for kind in _KINDS if kind in words), "tumor")


def _before_centring(direction: Tensor, mean: Tensor) -> Tensor:
    """The unit vector u with u - mean along `direction`: |mean + t d| = 1 for the positive t."""
    along = float(direction @ mean)
    return mean + (-along + (along**2 + 1 - float(mean @ mean)) ** 0.5) * direction
