"""How does a CLIP text tower encode a phrase: in every prompt, within its context. The only file that meets open_clip's
models.

Axis legend: `k` phrases, `E` text width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import normalize

from dsm_core.hashed_words import TextSpaceError
from dsm_core.text_weights import TowerFiles, find_tower

_BATCH = 64  # phrases encoded at a time

log = logging.getLogger(__name__)


class TextTower:
    """A CLIP text tower through open_clip (Radford et al. 2021, arXiv:2103.00020)."""

    def __init__(self, model: str, weights: str | None, prompts: Sequence[str]) -> None:
        """Load the tower.

        Args:
            model: open_clip architecture, `hf-hub:OWNER/NAME` or `local-dir:FOLDER`.
            weights: pretrained tag, safetensors file, or folder with `open_clip_config.json`.
            prompts: templates that hold `{}` for the phrase; their vectors are averaged.

        Raises:
            TextSpaceError: open_clip or the weights are not available, or the weights are of another architecture.
        """
        try:
            import open_clip  # noqa: F401
        except ImportError as error:
            raise TextSpaceError("text.encoder=open_clip wants the package open_clip_torch: install it") from error
        files = find_tower(model, weights)
        self._tower: Any = _build(files)
        self._tokenizer, self._prompts = _tokenizer(files), tuple(prompts)
        count = f"{len(prompts)} prompts" if len(prompts) > 1 else "1 prompt"
        self.name = f"open_clip {files.label}, {count}"

    @torch.no_grad()
    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Mean of the unit text features over the prompts, (k, E) float32; what the context cuts off is logged."""
        fitted = []
        for phrase in phrases:
            kept, cut = self._split(phrase)
            fitted.append(kept)
            if cut:
                log.warning("longer than the %d tokens of the text tower: read %r, left out %r", self._room, kept, cut)
        return torch.cat([self._encode(fitted[at : at + _BATCH]) for at in range(0, len(fitted), _BATCH)])

    def left_out(self, phrase: str) -> str:
        """The end of a phrase that the tower's context has no room for; empty where it has."""
        return self._split(phrase)[1]

    def _encode(self, phrases: Sequence[str]) -> Tensor:
        rows = [
            self._tower.encode_text(self._tokenizer([prompt.replace("{}", phrase) for phrase in phrases])).float()
            for prompt in self._prompts
        ]
        return torch.stack([normalize(row, dim=1) for row in rows]).mean(dim=0)

    @property
    def _room(self) -> int:
        return self._tokenizer.context_length

    def _split(self, phrase: str) -> tuple[str, str]:
        """The phrase in two: what fits into the context with the longest prompt, and the rest."""
        words = phrase.split()
        for count in range(len(words), 0, -1):
            kept = " ".join(words[:count])
            if all(self._tokens(prompt.replace("{}", kept)) <= self._room for prompt in self._prompts):
                return kept, " ".join(words[count:])
        raise TextSpaceError(
            f"not one word of {phrase[:40]!r} fits into the {self._room} tokens of the text tower with its prompts; "
            "shorten the phrase or text.prompts"
        )

    def _tokens(self, text: str) -> int:
        """Length with the tokens of beginning and end."""
        own = getattr(self._tokenizer, "tokenizer", None)  # of Hugging Face
        return len(own(text).input_ids) if own is not None else len(self._tokenizer.encode(text)) + 2


def _build(files: TowerFiles) -> nn.Module:
    """The model with its weights; the image tower is let go again, which is most of its memory."""
    import open_clip

    settings = dict(files.architecture)
    is_custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    if "timm_model_name" in settings["vision_cfg"]:
        settings["vision_cfg"] = settings["vision_cfg"] | {"timm_model_pretrained": False}  # never fetched
    try:
        model = (open_clip.CustomTextCLIP if is_custom else open_clip.CLIP)(**settings)
    except Exception as error:  # open_clip, timm and transformers raise their own for settings that they do not know
        raise TextSpaceError(
            f"open_clip cannot build the architecture of {files.label} ({type(error).__name__}: {error}); a Hugging "
            "Face text tower wants the package transformers, and its own config.json"
        ) from error
    _check_context(files, model)
    try:
        open_clip.load_checkpoint(model, f"{files.weights}", strict=True)
    except (RuntimeError, SafetensorError, KeyError, StopIteration) as error:
        told = [line.strip() for line in f"{error}".splitlines() if line.strip()]
        raise TextSpaceError(
            f"{files.weights.name} holds weights of another architecture than {files.label}: {' '.join(told[:3])[:400]}"
        ) from error
    model.visual = None
    return model.eval()


def _check_context(files: TowerFiles, model: nn.Module) -> None:
    """Refuse weights for another context: open_clip would stretch their positions without a word."""
    state = model.state_dict()
    try:
        with safe_open(f"{files.weights}", framework="pt") as held:
            found = {
                name.removeprefix("module."): tuple(held.get_slice(name).get_shape())
                for name in held.keys()  # noqa: SIM118 - no mapping
                if name.endswith("positional_embedding") and "visual" not in name
            }
    except (OSError, SafetensorError) as error:
        raise TextSpaceError(f"{files.weights.name} cannot be read as safetensors: {error}") from error
    for name, shape in found.items():
        own = state.get(name, state.get(f"text.{name}"))
        if own is not None and tuple(own.shape) != shape:
            raise TextSpaceError(
                f"{files.weights.name} holds weights of another architecture than {files.label}: {name} is {shape}, "
                f"wanted {tuple(own.shape)} (context, width)"
            )


def _tokenizer(files: TowerFiles) -> Any:
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    text = files.architecture["text_cfg"]
    context, settings = text.get("context_length", DEFAULT_CONTEXT_LENGTH), text.get("tokenizer_kwargs", {})
    if files.tokenizer is None:
        return SimpleTokenizer(context_length=context, **settings)
    try:
        return HFTokenizer(f"{files.tokenizer}", context, tokenizer_mode=text.get("tokenizer_mode"), **settings)
    except Exception as error:  # transformers raises its own for each broken file
        raise TextSpaceError(
            f"the tokenizer of {files.label} cannot be loaded ({type(error).__name__}: {error})"
        ) from error
