"""Which encoder makes the raw text vectors: a CLIP text tower, a saved bank of embeddings, or hashed words.

Axis legend: `k` phrases, `E` text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dsm_core.classes import ATLAS, ClassInfo
from dsm_core.config import TextConfig
from dsm_core.hashed_words import HASHED_WORDS, HashedWords, TextSpaceError
from dsm_core.text_bank import Bank, SavedEmbeddings, read_bank
from dsm_core.text_wordings import Recipe, encode_classes


class TextEncoder(Protocol):
    """Turns phrases into raw vectors; `name` says honestly what made them."""

    @property
    def name(self) -> str: ...

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Raw vectors, (k, E) float32, neither centred nor necessarily of unit length."""
        ...

    def left_out(self, phrase: str) -> str:
        """The end of a phrase that is too long to be read; empty where all of it is."""
        ...


def load_encoder(config: TextConfig) -> TextEncoder:
    """The encoder of a configuration; `auto` takes a bank or open_clip weights where given, else hashed words.

    Raises:
        TextSpaceError: the encoder asked for is not available.
    """
    choice = _choice(config)
    if choice == "offline":
        return HashedWords()
    if choice == "open_clip":
        from dsm_core.text_tower import TextTower

        return TextTower(config.model, config.weights, config.prompts)
    if not config.bank:
        raise TextSpaceError("text.encoder=bank wants text.bank, the path of a saved bank (.safetensors); found none")
    return SavedEmbeddings(read_bank(Path(config.bank)))


def load_phrase_encoder(config: TextConfig) -> TextEncoder:
    """The encoder for phrases beside the classes: beside a bank the tower of `text.weights`, or what made the bank.

    Raises:
        TextSpaceError: the encoder asked for is not available.
    """
    encoder = load_encoder(config)
    if not isinstance(encoder, SavedEmbeddings):
        return encoder
    if encoder.bank.model == HASHED_WORDS:
        return HashedWords(encoder.bank.embeddings.shape[1])
    if not config.weights:
        return encoder
    recipe = encoder.bank.recipe
    words = replace(config, encoder="open_clip", prompts=recipe.prompts or config.prompts)
    return load_encoder(words)


def make_bank(encoder: TextEncoder, classes: Sequence[ClassInfo], config: TextConfig) -> Bank:
    """Raw vectors of these classes and of the atlas, whose mean is that of every text space of the encoder."""
    infos = ATLAS | {info.name: info for info in classes}
    vocabulary = tuple(infos[name] for name in sorted(infos))
    if isinstance(encoder, HashedWords):
        # Synonyms move nothing there, and descriptions hurt (README, "The text space").
        recipe = Recipe(detail="name" if config.detail == "auto" else config.detail)
    else:
        recipe = Recipe(config.model, config.prompts, "synonyms" if config.detail == "auto" else config.detail)
    return Bank(vocabulary, encode_classes(encoder, vocabulary, recipe.detail), encoder.name, recipe)


def _choice(config: TextConfig) -> str:
    if config.encoder != "auto":
        return config.encoder
    return "bank" if config.bank else "open_clip" if config.weights else "offline"
