"""What does a site allow? `site.yaml`, owned by the site: nothing that the server sends can change it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import EVERYONE_READS, read_file, write_file

LEAVES = {
    "loss": "the mean training loss of a round",
    "moments": "AdamW's moments, which are gradient statistics (server.moments=shared asks for them)",
    "seconds": "how long a round took here",
}
CODE = ("installed", "any")
SITE_FILE = "site.yaml"
DEVICE = "cpu"
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")
FIRST_PORT, LAST_PORT = 1024, 65535


class SiteFileError(DeploymentError):
    """Faults of a `site.yaml`.

    Attributes:
        faults: every one, so that all can be corrected at once.
    """

    def __init__(self, path: Path, faults: list[str]) -> None:
        super().__init__(f"{path} has {len(faults)} fault(s):\n  " + "\n  ".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True)
class SiteSettings:
    """A site's own choices.

    Attributes:
        data: folder with dataset.json, imagesTr/ and labelsTr/.
        device: on which it trains and makes prompts: cpu, cuda, cuda:N, or auto, which is CUDA where there is one.
        threads: of PyTorch, 0 = as many as cores.
        port: of the SuperNode on the loopback address.
        epsilon_ceiling: a round that would spend more, all rounds so far included, is refused, and so is any training
            without differential privacy. None leaves both to the ledger.
        ledger: of what was spent; None: in the data folder, if there is one. Named and missing, it stops training.
        leaves: what may leave besides the label contract and the model's tensors, without which no site takes part.
        code: `installed` runs only an app whose every file is the one installed at this site; `any` runs what the
            coordinator sends.
    """

    data: Path
    device: str = DEVICE
    threads: int = 0
    port: int = 9094
    epsilon_ceiling: float | None = None
    ledger: Path | None = None
    leaves: frozenset[str] = frozenset(LEAVES)
    code: str = "installed"


def read_site_file(path: Path | str) -> SiteSettings:
    """The settings in a `site.yaml`; relative paths start at its folder.

    Raises:
        SiteFileError: every fault of the file.
        DeploymentError: it cannot be read.
    """
    path = Path(path).resolve()
    try:
        content = yaml.safe_load(read_file(path, "the site's own file, as `dsm-site join` writes it"))
    except yaml.YAMLError as error:
        raise SiteFileError(path, [f"it is no YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(content, dict):
        raise SiteFileError(path, [f"it holds a {type(content).__name__}, wanted `key: value` lines"])
    faults: list[str] = []
    known = SiteSettings.__dataclass_fields__
    faults += [f"{key}: no such key; wanted some of {', '.join(known)}" for key in content if key not in known]
    settings = SiteSettings(
        data=_data(content.get("data"), path.parent, faults),
        device=_device(content.get("device", DEVICE), faults),
        threads=_integer("threads", content.get("threads", 0), 0, 1024, faults),
        port=_integer("port", content.get("port", 9094), FIRST_PORT, LAST_PORT, faults),
        epsilon_ceiling=_ceiling(content.get("epsilon_ceiling"), faults),
        ledger=_ledger(content.get("ledger"), path.parent, faults),
        leaves=_leaves(content.get("leaves", list(LEAVES)), faults),
        code=_choice("code", content.get("code", CODE[0]), CODE, faults),
    )
    if faults:
        raise SiteFileError(path, faults)
    return settings


def write_site_file(path: Path, data: Path | None, port: int = 9094) -> None:
    """A first `site.yaml` with every key explained."""
    leaves = "\n".join(f"  - {name:<8} # {what}" for name, what in LEAVES.items())
    shown = f"{data.resolve()}" if data else "CHANGE-ME"
    text = f"""# What this site allows. It is read here and nowhere else; the coordinator can neither see nor change it.

# The folder with dataset.json, imagesTr/ and labelsTr/.
data: {yaml.safe_dump(shown, default_style='"').strip()}

# Where it trains: cpu, cuda, cuda:1 (the second card), or auto, which is cuda where there is one; and with how many
# threads of the CPU (0 = as many as cores).
device: {DEVICE}
threads: 0

# The highest epsilon (differential privacy, per patient) that this site spends in all. A number refuses every order
# to train without differential privacy; null allows it, unless the site keeps a ledger.
epsilon_ceiling: null

# The ledger of what has been spent, as `dsm-site ledger create DATA --epsilon 8 --file LEDGER` makes it. null: the one
# in the data folder, if there is one. A ledger that is named here and missing stops all training.
ledger: null

# What may leave besides the label contract (class names, case counts, spacing and intensity statistics) and the model's
# tensors, without which no site takes part. Delete a line to forbid it.
leaves:
{leaves}

# installed: run only an app whose every file is the one installed here. any: run whatever the coordinator sends.
code: installed

# The SuperNode's port on this machine's loopback address.
port: {port}
"""
    write_file(path, text, EVERYONE_READS)


def _data(value: Any, base: Path, faults: list[str]) -> Path:
    if not isinstance(value, str) or not value:
        faults.append(f"data: found {value!r}, wanted the folder with dataset.json")
        return base
    folder = (base / Path(value).expanduser()).resolve()
    if not (folder / "dataset.json").is_file():
        faults.append(f"data: {folder} holds no dataset.json; wanted a folder in the layout of MSD or nnU-Net")
    elif not os.access(folder, os.R_OK | os.X_OK):
        faults.append(f"data: {folder} cannot be read by this user")
    return folder


def _integer(key: str, value: Any, low: int, high: int, faults: list[str]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        faults.append(f"{key}: found {value!r}, wanted a whole number from {low} to {high}")
        return low
    return value


def _ceiling(value: Any, faults: list[str]) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        faults.append(f"epsilon_ceiling: found {value!r}, wanted a number above 0, or null")
        return None
    return float(value)


def _ledger(value: Any, base: Path, faults: list[str]) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        faults.append(f"ledger: found {value!r}, wanted a file that `dsm-site ledger create` made, or null")
        return None
    return (base / Path(value).expanduser()).resolve()


def _leaves(value: Any, faults: list[str]) -> frozenset[str]:
    if value is None:  # every line of the list deleted
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        faults.append(f"leaves: found {value!r}, wanted a list of some of {', '.join(LEAVES)}")
        return frozenset()
    faults += [
        f"leaves: {item!r} is unknown; wanted some of {', '.join(LEAVES)}" for item in value if item not in LEAVES
    ]
    return frozenset(value)


def _device(value: Any, faults: list[str]) -> str:
    if not isinstance(value, str) or not DEVICES.fullmatch(value):
        faults.append(f"device: found {value!r}, wanted cpu, cuda, cuda:N or auto")
    return str(value)


def _choice(key: str, value: Any, choices: tuple[str, ...], faults: list[str]) -> str:
    if value not in choices:
        faults.append(f"{key}: found {value!r}, wanted {' or '.join(choices)}")
    return str(value)
