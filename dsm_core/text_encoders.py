"""Which encoder makes the raw text vectors: a CLIP text tower, a saved bank of embeddings, or hashed words.

Axis legend: `k` phrases, `E` text width. The only file that meets open_clip, and only when one is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dsm_core.classes import normalise_name
from dsm_core.config import TextConfig
from dsm_core.hashed_words import HashedWords, TextSpaceError


class TextEncoder(Protocol):
    """Turns phrases into raw vectors; `name` says honestly what made them."""

    @property
    def name(self) -> str: ...

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Raw vectors, (k, E) float32, neither centred nor necessarily of unit length."""
        ...


class OpenClip:
    """A CLIP text tower through open_clip (Radford et al. 2021, arXiv:2103.00020)."""

    def __init__(self, model: str, weights: str | None, prompt: str) -> None:
        """Load the tower.

        Args:
            model: open_clip architecture, or `hf-hub:...`.
            weights: pretrained tag, checkpoint file, or folder with `open_clip_config.json`.
            prompt: template holding `{}` for the phrase.

        Raises:
            TextSpaceError: open_clip or the weights are not available, or the prompt holds no `{}`.
        """
        if "{}" not in prompt:
            raise TextSpaceError(f"text.prompt wants a {{}} for the class name, found {prompt!r}")
        try:
            import open_clip
        except ImportError as error:
            raise TextSpaceError("text.encoder=open_clip wants the package open_clip_torch: install it") from error
        folder = Path((weights or "").removeprefix("local-dir:"))
        if weights and folder.is_dir():
            model, pretrained, label = f"local-dir:{folder}", None, f"folder {folder.name}"
        elif weights and folder.is_file():
            pretrained, label = weights, f"file {hashlib.sha256(folder.read_bytes()).hexdigest()[:12]}"
        elif weights in open_clip.list_pretrained_tags_by_model(model):
            pretrained, label = weights, str(weights)
        elif model.startswith("hf-hub:") and not weights:
            pretrained, label = None, ""
        else:
            raise TextSpaceError(
                f"text.weights wants a pretrained tag of {model}, a checkpoint file or a folder with "
                f"open_clip_config.json; found {weights!r}"
            )
        try:
            self._tower = open_clip.create_model(model, pretrained=pretrained, load_weights=True).eval()
            self._tokenize = open_clip.get_tokenizer(model)
        except Exception as error:  # open_clip raises whatever its hub, its parser or torch raises
            raise TextSpaceError(f"open_clip could not load {model} with weights {label!r}: {error}") from error
        self._prompt = prompt
        architecture = "local" if model.startswith("local-dir:") else model
        self.name = f"open_clip {architecture} {label}".strip()

    @torch.no_grad()
    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Text features of the prompted phrases, (k, E) float32."""
        return self._tower.encode_text(self._tokenize([self._prompt.format(phrase) for phrase in phrases])).float()


class SavedEmbeddings:
    """Raw embeddings of a fixed list of class names: safetensors with `embeddings` and, in the metadata, `classes`."""

    def __init__(self, path: Path) -> None:
        """Read the bank.

        Raises:
            TextSpaceError: the file is missing, is not safetensors or lacks the tensor or the class list.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as bank:
                about = bank.metadata() or {}
                vectors = bank.get_tensor("embeddings").float()
            classes = json.loads(about["classes"])
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise TextSpaceError(
                f"text.bank {path} wants a safetensors file with the tensor 'embeddings' and the metadata 'classes' "
                f"(JSON list): {error}"
            ) from error
        if vectors.ndim != 2 or len(classes) != len(vectors) or not torch.isfinite(vectors).all():
            raise TextSpaceError(
                f"text.bank {path}: found {len(classes)} classes and embeddings {tuple(vectors.shape)}, "
                "wanted one finite row a class"
            )
        self.rows = {normalise_name(name): row for name, row in zip(classes, vectors, strict=True)}
        self.name = f"bank of {len(classes)} classes ({about.get('model', 'model not stated')})"

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Raw rows of the phrases, (k, E).

        Raises:
            TextSpaceError: names that the bank does not hold; all are listed.
        """
        missing = [phrase for phrase in phrases if normalise_name(phrase) not in self.rows]
        if missing:
            raise TextSpaceError(
                f"the {self.name} holds no {', '.join(map(repr, missing))}; use text.encoder=open_clip or offline, "
                "or a bank with these classes"
            )
        return torch.stack([self.rows[normalise_name(phrase)] for phrase in phrases])


def load_encoder(config: TextConfig) -> TextEncoder:
    """The encoder of a configuration; `auto` takes a bank or open_clip weights where given, else hashed words.

    Raises:
        TextSpaceError: the encoder asked for is not available.
    """
    choice = config.encoder
    if choice == "auto":
        choice = "bank" if config.bank else "open_clip" if config.weights else "offline"
    if choice == "offline":
        return HashedWords()
    if choice == "open_clip":
        return OpenClip(config.model, config.weights, config.prompt)
    if not config.bank:
        raise TextSpaceError("text.encoder=bank wants text.bank, the path of a saved bank (.safetensors); found none")
    return SavedEmbeddings(Path(config.bank))
