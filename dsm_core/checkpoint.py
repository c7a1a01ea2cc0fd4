"""How is a model kept on disk: weights, text space and description in one folder, replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsm_core.config import Config, ConfigError, DataConfig, ModelConfig
from dsm_core.model import DSM, build_model
from dsm_core.text_space import TextSpace, TextSpaceError

WEIGHTS, TEXT, ABOUT = "model.safetensors", "text_space.safetensors", "model.json"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is absent, incomplete or made for another model; the message says what was found and wanted."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with everything that is needed to query it.

    Attributes:
        model: in evaluation mode, on the CPU.
        text: the text space it was trained with.
        data: the grid and intensity window it was trained on.
        extra: what the writer added, such as run, round and seed.
    """

    model: DSM
    text: TextSpace
    model_config: ModelConfig
    data: DataConfig
    extra: dict[str, Any]


def save_checkpoint(
    folder: Path, model: nn.Module, config: Config, text: TextSpace, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint folder; an older one of that name stays whole until the new one is.

    Args:
        extra: JSON-able facts about the run.

    Raises:
        CheckpointError: the folder cannot be written; nothing half-written is left.
    """
    about = {
        "format": FORMAT,
        "model": asdict(config.model),
        "data": asdict(config.data),
        "classes": list(text.names),
        "text_hash": text.hash,
        "text_encoder": text.encoder,
        "extra": dict(extra or {}),
    }
    partial = folder.with_name(f".{folder.name}.partial")
    previous = _previous(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, partial / WEIGHTS)
        (partial / TEXT).write_bytes(text.to_bytes())
        (partial / ABOUT).write_text(json.dumps(about, indent=2))
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(folder, previous)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {folder.name} could not be written: {error}") from error
    shutil.rmtree(previous, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: a missing or unreadable file, a text space with another hash, or weights of another model.
    """
    if not folder.exists() and _previous(folder).exists():  # stopped between the two renames of save_checkpoint
        folder = _previous(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at {folder}; wanted one holding {WEIGHTS}, {TEXT} and {ABOUT}")
    missing = [name for name in (WEIGHTS, TEXT, ABOUT) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no checkpoint: it lacks {', '.join(missing)}")
    try:
        about = json.loads((folder / ABOUT).read_text())
        if about["format"] != FORMAT:
            raise CheckpointError(f"{folder / ABOUT}: found format {about['format']}, this version reads {FORMAT}")
        model_config, data = ModelConfig(**about["model"]), DataConfig(**about["data"])
        text_hash, extra = about["text_hash"], about["extra"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder / ABOUT} cannot be read ({type(error).__name__}: {error})") from error
    try:
        text = TextSpace.load(folder / TEXT)
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, TextSpaceError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    if text.hash != text_hash:
        raise CheckpointError(
            f"{folder}: the model was trained with text space {text_hash[:12]}, but {TEXT} holds {text.hash[:12]}; "
            "put back the text space of its run"
        )
    model = build_model(model_config, text)
    if differences := _differences(model.state_dict(), weights):
        shown = "; ".join(differences[:4]) + ("; ..." if len(differences) > 4 else "")
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit the model {model_config.name!r} of {ABOUT}: "
            f"{len(differences)} tensors differ: {shown}"
        )
    model.load_state_dict(weights)
    return Checkpoint(model.eval(), text, model_config, data, extra)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    def shape(tensors: Mapping[str, Tensor], name: str) -> str:
        return str(tuple(tensors[name].shape)) if name in tensors else "nothing"

    return [
        f"{name}: expected {shape(wanted, name)}, found {shape(found, name)}"
        for name in sorted({*wanted, *found})
        if shape(wanted, name) != shape(found, name)
    ]
