"""What does a class mean: the frozen, centred, content-hashed bank of text vectors that every site shares.

Axis legend: `n` classes, `m` further phrases, `k` queried phrases, `E` text width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from dsm_core.classes import ClassInfo, ClassKind, normalise_name
from dsm_core.config import TextConfig
from dsm_core.durable import replace_file
from dsm_core.hashed_words import HASHED_WORDS, HashedWords, TextSpaceError
from dsm_core.text_bank import SavedEmbeddings, centred
from dsm_core.text_encoders import TextEncoder, load_phrase_encoder
from dsm_core.text_names import Names, in_atlas
from dsm_core.text_wordings import PLAIN, Recipe, encode_classes

__all__ = ["TextSpace", "TextSpaceError"]


@dataclass(frozen=True, eq=False)
class TextSpace:
    """The frozen bank: unit vectors of the classes after the mean of the bank was taken away.

    Raw CLIP embeddings of class names are nearly collinear (mean cosine 0.88); centring brings the mean to about 0.

    Attributes:
        classes: sorted by name; row i of `vectors` belongs to class i.
        vectors: (n, E) float32, centred, unit length.
        mean: (E,) float32, subtracted from every unit vector before it is normalised again.
        encoder: what made the vectors, as shown in every output.
        phrases: further names whose vectors travel along, so that a site without the encoder can query them.
        phrase_vectors: (m, E) float32, centred, unit length.
        recipe: how a class was encoded.
        phrase_encoder: encodes any other phrase; None where the encoder is not at hand. Not part of the content.
        taught: vectors of phrases that were encoded elsewhere, (E,) each. Not part of the content.
    """

    classes: tuple[ClassInfo, ...]
    vectors: Tensor
    mean: Tensor
    encoder: str
    phrases: tuple[str, ...] = ()
    phrase_vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    recipe: Recipe = PLAIN
    phrase_encoder: TextEncoder | None = field(default=None, repr=False)
    taught: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in the order of the rows."""
        return tuple(info.name for info in self.classes)

    @property
    def width(self) -> int:
        """E, the length of a vector."""
        return self.vectors.shape[1]

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the content: encoder, classes, phrases and every float. Equal hash, equal text space."""
        digest = hashlib.sha256(json.dumps(self._about(), sort_keys=True).encode())
        for tensor in self._tensors().values():
            digest.update(tensor.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    @cached_property
    def _names(self) -> Names:
        return Names(self.classes)

    def index(self, name: str) -> int:
        """Row of a class.

        Raises:
            TextSpaceError: the bank holds no class of this name.
        """
        if name not in self.names:
            raise TextSpaceError(f"the text space holds no class {name!r}; it holds {', '.join(self.names)}")
        return self.names.index(name)

    def find(self, phrase: str) -> ClassInfo | None:
        """The bank's class that a phrase names, by name, by synonym or by the same words in another form; or None."""
        row = self._names.row(phrase)
        return None if row is None else self.classes[row]

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Centred unit vectors of phrases, (k, E): what names a class gives its bank row, other text is encoded.

        Raises:
            TextSpaceError: a phrase is empty, or it is not in the bank and the bank's encoder is not at hand.
        """
        unknown = self.unknown(phrases)
        if unknown and self.phrase_encoder is None:
            raise TextSpaceError(
                f"the text space does not hold {', '.join(map(repr, unknown))} and its encoder "
                f"({self.encoder}) is not at hand here; have them encoded with `dsm-site encode`, give its "
                f"weights, or query one of {', '.join(self.names)}"
            )
        made = dict(zip(unknown, self._encode_new(unknown), strict=True)) if unknown else {}
        rows = [made.get(name, self._known(name)) for name in map(normalise_name, phrases)]
        return torch.stack([row for row in rows if row is not None]) if rows else self.vectors[:0]

    def wordings(self, name: str) -> Tensor:
        """Vectors of a class and, where the bank's encoder is at hand, of its synonyms: (n, E), n at least 1.

        Raises:
            TextSpaceError: the bank holds no class of this name.
        """
        info = self.classes[self.index(name)]
        if info.name not in self._wordings:
            found = self.vectors[self.index(name)][None]
            if self.phrase_encoder is not None and info.synonyms:
                try:
                    raw = self.phrase_encoder.encode(info.synonyms)
                    found = torch.cat([found, centred(raw, self.mean, info.synonyms)])
                except TextSpaceError:
                    pass  # saved embeddings hold names and no synonyms
            self._wordings[info.name] = found
        return self._wordings[info.name]

    @cached_property
    def _wordings(self) -> dict[str, Tensor]:
        return {}

    def unknown(self, phrases: Sequence[str]) -> list[str]:
        """Those phrases, in the form in which they are known, that only an encoder can give a vector.

        Raises:
            TextSpaceError: a phrase is empty.
        """
        for phrase in phrases:
            if not re.search(r"\w", phrase.replace("_", " ")):
                raise TextSpaceError(f"a text query needs words; found {phrase!r}, an empty phrase")
        wanted = dict.fromkeys(normalise_name(phrase) for phrase in phrases)
        return [name for name in wanted if self._known(name) is None]

    def left_out(self, phrase: str) -> str:
        """The end of a phrase that is too long for the encoder at hand; empty where no encoder has to read it."""
        is_read = self.phrase_encoder is not None and self.unknown([phrase])
        return self.phrase_encoder.left_out(normalise_name(phrase)) if is_read and self.phrase_encoder else ""

    def _known(self, name: str) -> Tensor | None:
        """The vector of a normalised phrase that needs no encoder."""
        row = self._names.row(name)
        if row is not None:
            return self.vectors[row]
        if (own := in_atlas(name).name) in self.phrases:
            return self.phrase_vectors[self.phrases.index(own)]
        return self.taught.get(name)

    def _encode_new(self, phrases: Sequence[str]) -> Tensor:
        """What names a class of the atlas is encoded as that class is, so that it has its vector when it joins."""
        assert self.phrase_encoder is not None
        infos = [in_atlas(name) for name in phrases]
        return centred(
            encode_classes(self.phrase_encoder, infos, self._detail(self.phrase_encoder)), self.mean, phrases
        )

    def _detail(self, encoder: TextEncoder) -> str:
        return "name" if isinstance(encoder, SavedEmbeddings) else self.recipe.detail

    def with_encoder(self, encoder: TextConfig | TextEncoder) -> TextSpace:
        """The same text space with an encoder for new phrases, loaded already or still to be loaded.

        Raises:
            TextSpaceError: the encoder is not available, or does not reproduce the bank's own vectors.
        """
        if isinstance(encoder, TextConfig):
            encoder = load_phrase_encoder(encoder)
        raw = encode_classes(encoder, self.classes[:1], self._detail(encoder))
        if raw.shape[1] != self.width:
            raise TextSpaceError(
                f"the text space was made by {self.encoder} and has vectors of {self.width} numbers; {encoder.name} "
                f"gives {raw.shape[1]}: use the weights that made it"
            )
        likeness = float(centred(raw, self.mean, self.names[:1]) @ self.vectors[0])
        if likeness < 0.999:
            raise TextSpaceError(
                f"the text space was made by {self.encoder}; {encoder.name} gives {self.names[0]!r} another vector "
                f"(cosine {likeness:.3f}, wanted 1): use the same weights and prompts"
            )
        return replace(self, phrase_encoder=encoder)

    def to_bytes(self) -> bytes:
        """The content as safetensors with its description and hash in the metadata."""
        about = {"text_space": json.dumps(self._about(), sort_keys=True), "hash": self.hash}
        return safetensors.save(self._tensors(), metadata=about)

    @classmethod
    def from_bytes(cls, content: bytes) -> TextSpace:
        """Read what `to_bytes` wrote and verify its hash.

        Raises:
            TextSpaceError: the content is not a text space or is corrupted.
        """
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            about, stated = json.loads(header["__metadata__"]["text_space"]), header["__metadata__"]["hash"]
            tensors = safetensors.load(content)
            classes = tuple(
                ClassInfo(c["name"], ClassKind(c["kind"]), c["host"], tuple(c["synonyms"])) for c in about["classes"]
            )
            space = cls(
                classes=classes,
                vectors=tensors["vectors"],
                mean=tensors["mean"],
                encoder=about["encoder"],
                recipe=Recipe.from_dict(about["recipe"]) if "recipe" in about else PLAIN,
                phrases=tuple(about["phrases"]),
                phrase_vectors=tensors["phrase_vectors"],
                phrase_encoder=HashedWords(len(tensors["mean"])) if about["encoder"] == HASHED_WORDS else None,
            )
            found = space.hash
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TextSpaceError(f"the text space cannot be read ({error}); fetch it from the server again") from error
        if found != stated:
            raise TextSpaceError(f"the text space is corrupted: content hash {found[:12]}, stated {stated[:12]}")
        return space

    def save(self, path: Path) -> None:
        """Write the text space to a file; never half of it."""
        replace_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> TextSpace:
        """Read a saved text space.

        Raises:
            TextSpaceError: the file is missing or corrupted.
        """
        try:
            return cls.from_bytes(path.read_bytes())
        except OSError as error:
            raise TextSpaceError(f"no text space at {path}: {error.strerror}") from error

    def _about(self) -> dict[str, Any]:
        # The plain recipe is left out, so that text spaces from before there were others keep their hash.
        recipe = {} if self.recipe == PLAIN else {"recipe": asdict(self.recipe)}
        return {
            "encoder": self.encoder,
            "classes": [asdict(info) for info in self.classes],
            "phrases": list(self.phrases),
            **recipe,
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "mean": self.mean, "phrase_vectors": self.phrase_vectors}
