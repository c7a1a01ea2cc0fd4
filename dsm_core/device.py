"""On which device is computed? A name typed by a person, found to be there."""

from __future__ import annotations

import torch

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
