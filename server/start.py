"""From which tensors does a run start? Fresh ones of its seed, or those of a checkpoint (`start=FOLDER`).

A checkpoint lies outside the run's privacy: what it learned must be public, or was paid for when it was trained.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dsm_core.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from dsm_core.config import Config, ConfigError
from dsm_core.model import DSM
from strategies.averaging import CLASS_ROWS

# Of a model's configuration: what changes how it is computed, and no tensor.
_FREE = ("name", "scan_backend", "refine_steps", "precision", "checkpointing")


def read_start(config: Config) -> Checkpoint | None:
    """The checkpoint that a run starts from; None where it starts fresh.

    Raises:
        ConfigError: it cannot be read, or its model has other sizes.
    """
    if config.start is None:
        return None
    try:
        checkpoint = load_checkpoint(Path(config.start))
    except CheckpointError as error:
        raise ConfigError(f"start={config.start}: {error}") from error
    there, here = vars(checkpoint.model_config), vars(config.model)
    if other := [key for key in here if key not in _FREE and there[key] != here[key]]:
        differences = [f"{key} {there[key]}, wanted {here[key]}" for key in other]
        raise ConfigError(f"start={config.start} holds a model of other sizes: {'; '.join(differences)}")
    return checkpoint


def take_over(model: DSM, checkpoint: Checkpoint) -> None:
    """Fill a model with a checkpoint's tensors: class rows by the name of their class, everything else as it is.

    A row of a class that the checkpoint does not know stays as it was made.

    Raises:
        ConfigError: it was trained on text vectors of another width.
    """
    known = [
        (row, checkpoint.text.names.index(name))
        for row, name in enumerate(model.names)
        if name in checkpoint.text.names
    ]
    found, tensors = checkpoint.model.state_dict(), model.state_dict()
    others = [key for key in tensors if not key.startswith(CLASS_ROWS) and found[key].shape != tensors[key].shape]
    if others:
        raise ConfigError(
            f"start holds {', '.join(others)} in another shape: it was trained with the text encoder "
            f"{checkpoint.text.encoder!r}; set text.encoder to the same"
        )
    with torch.no_grad():
        for key, tensor in tensors.items():
            if key.startswith(CLASS_ROWS):
                for row, there in known:
                    tensor[row] = found[key][there]
            else:
                tensor.copy_(found[key])
