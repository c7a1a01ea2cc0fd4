"""In which words is a class encoded? Prompt templates, synonyms, and how it looks on CT; their vectors are averaged.

Axis legend: `k` classes, `E` text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dsm_core.classes import ClassInfo
from dsm_core.text_appearance import appearance_of


@dataclass(frozen=True)
class Recipe:
    """How the vector of a class was made, so that another process makes the same.

    Attributes:
        model: open_clip's name of the text tower; empty where there was none.
        prompts: sentences around every phrase; empty for the phrase alone.
        detail: what of a class was averaged, see `wordings`.
    """

    model: str = ""
    prompts: tuple[str, ...] = ()
    detail: str = "name"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe that `dataclasses.asdict` was given."""
        return cls(content["model"], tuple(content["prompts"]), content["detail"])


PLAIN = Recipe()


class Words(Protocol):
    """Turns phrases into raw vectors."""

    def encode(self, phrases: Sequence[str]) -> Tensor: ...


def wordings(info: ClassInfo, detail: str) -> tuple[str, ...]:
    """The phrases whose mean stands for a class.

    Args:
        detail: `name`; `synonyms`, which stand beside it; `attributes`, a description of its looks beside both.
    """
    phrases = [info.name]
    if detail != "name":
        phrases += info.synonyms
    if detail == "attributes" and (look := appearance_of(info)):
        phrases.append(f"{info.name}, {look}")
    return tuple(phrases)


def encode_classes(encoder: Words, classes: Sequence[ClassInfo], detail: str) -> Tensor:
    """Raw vector of each class, (k, E) float32: of its name, or the mean of the unit vectors of its wordings."""
    phrases = [wordings(info, detail) for info in classes]
    raw = encoder.encode([phrase for of_class in phrases for phrase in of_class])
    parts = raw.split([len(of_class) for of_class in phrases])
    return torch.stack(
        [rows[0] if len(rows) == 1 else normalize(rows.double(), dim=1).mean(0).float() for rows in parts]
    )
