"""How are raw text vectors of a list of classes kept in a file, so that a run needs no text tower?

safetensors with `embeddings` (n, E), raw, and JSON in the metadata: `classes`, a list of names; `model`, what made
them; and, where `dsm-server text-space build` wrote it, `about` (kind, host and synonyms of each class, and how it was
encoded) and `hash`. Axis legend: `n` classes, `k` phrases, `E` text width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from dsm_core.classes import ClassInfo, ClassKind, describe_class, normalise_name
from dsm_core.durable import replace_file
from dsm_core.hashed_words import TextSpaceError
from dsm_core.text_wordings import PLAIN, Recipe


@dataclass(frozen=True, eq=False)
class Bank:
    """Raw vectors of classes.

    Attributes:
        classes: row i of `embeddings` belongs to class i.
        embeddings: (n, E) float32, finite, neither centred nor necessarily of unit length.
        model: what made them.
        recipe: how each class was encoded.
    """

    classes: tuple[ClassInfo, ...]
    embeddings: Tensor
    model: str
    recipe: Recipe = PLAIN

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of every class name."""
        return {info.name: row for row, info in enumerate(self.classes)}

    def describe(self, info: ClassInfo) -> ClassInfo:
        """A class of the bank as a site declares it, with the host and the synonyms that only the bank knows."""
        own = self.classes[self.rows[info.name]]
        return replace(info, host=info.host or own.host, synonyms=info.synonyms or own.synonyms)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the names, of what made them and of every float."""
        digest = hashlib.sha256(json.dumps([self.model, self._about()], sort_keys=True).encode())
        digest.update(self.embeddings.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        metadata = {
            "classes": json.dumps([info.name for info in self.classes]),
            "model": self.model,
            "about": json.dumps(self._about()),
            "hash": self.hash,
        }
        replace_file(path, safetensors.save({"embeddings": self.embeddings.contiguous()}, metadata=metadata))

    def _about(self) -> dict:
        return {"classes": [asdict(info) for info in self.classes], "recipe": asdict(self.recipe)}


def read_bank(path: Path) -> Bank:
    """A bank from its file; classes of a bank without `about` are described by their names.

    Raises:
        TextSpaceError: the file is missing, is not safetensors, lacks the tensor or the class list, or is damaged.
    """
    try:
        with safe_open(f"{path}", framework="pt") as held:
            metadata = held.metadata() or {}
            vectors = held.get_tensor("embeddings").float()
        names = json.loads(metadata["classes"])
        about = json.loads(metadata["about"]) if "about" in metadata else {}
        classes = tuple(map(_class, about["classes"])) if about else tuple(describe_class(name) for name in names)
        recipe = Recipe.from_dict(about["recipe"]) if about else PLAIN
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TextSpaceError(
            f"text.bank {path} wants a safetensors file with the tensor 'embeddings' and the metadata 'classes' "
            f"(JSON list of names): {error}"
        ) from error
    doubled = sorted({info.name for info in classes if [each.name for each in classes].count(info.name) > 1})
    if vectors.ndim != 2 or len(classes) != len(vectors) or not torch.isfinite(vectors).all() or doubled:
        raise TextSpaceError(
            f"text.bank {path}: found {len(classes)} classes ({', '.join(doubled) or 'none'} twice) and embeddings "
            f"{tuple(vectors.shape)}, wanted one finite row a class"
        )
    bank = Bank(classes, vectors, metadata.get("model", "model not stated"), recipe)
    if metadata.get("hash", bank.hash) != bank.hash:
        raise TextSpaceError(f"text.bank {path} is damaged: its content has not the hash that it states; build it anew")
    return bank


class SavedEmbeddings:
    """A bank in an encoder's place: it knows the names of its classes and no other phrase."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.name = f"bank of {len(bank.classes)} classes ({bank.model})"

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Raw rows of the phrases, (k, E).

        Raises:
            TextSpaceError: names that the bank does not hold; all are listed.
        """
        rows = self.bank.rows
        missing = [phrase for phrase in phrases if normalise_name(phrase) not in rows]
        if missing:
            raise TextSpaceError(
                f"the {self.name} holds no {', '.join(map(repr, missing))}; use text.encoder=open_clip or offline, "
                "or a bank with these classes (`dsm-server text-space build`)"
            )
        return self.bank.embeddings[[rows[normalise_name(phrase)] for phrase in phrases]]

    def left_out(self, phrase: str) -> str:
        """Nothing: a name is looked up, not read."""
        return ""


def centred(raw: Tensor, mean: Tensor, phrases: Sequence[str]) -> Tensor:
    """Unit length, minus the bank's mean, unit length again; (k, E) float32.

    Raises:
        TextSpaceError: a phrase whose vector is not finite or equals the mean.
    """
    offset = torch.nn.functional.normalize(raw.double(), dim=1) - mean.double()
    length = offset.norm(dim=1, keepdim=True)
    lost = [phrase for phrase, size in zip(phrases, length[:, 0], strict=True) if not size > 1e-6]
    if lost:
        raise TextSpaceError(f"the encoder gives {', '.join(map(repr, lost))} no direction of its own; reword it")
    return (offset / length).float()


def _class(content: dict) -> ClassInfo:
    return ClassInfo(content["name"], ClassKind(content["kind"]), content["host"], tuple(content["synonyms"]))
