"""On which device is computed? A name typed by a person, found to be there; and a batch brought to it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dsm_core.config import ConfigError

AUTO = "auto"


class DeviceError(ConfigError):
    """A device that is not there, or cannot be used."""


def find_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is such a device, else the CPU.

    Raises:
        DeviceError: it is not there; the message says what the driver says.
    """
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == AUTO else name
    try:
        device = torch.device(found)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {name} is not available here: {str(error).splitlines()[0]}") from error
    return device


def placed(batch: Any, device: torch.device) -> Any:
    """A batch, or a part of one, on a device; what is no tensor stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    return replace(batch, **{part.name: placed(getattr(batch, part.name), device) for part in fields(batch)})
