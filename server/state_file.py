"""What is the state of a run on disk? Its files, written so that each is whole or not there, and read with suspicion.

    round-000007.json          round, classes, history, contracts, configuration; names the files below
    round-000007.safetensors   every tensor: the global ones, momentum, what the caller adds
    text-HASH.safetensors      the text space

Nothing is pickled. No state of a random generator is kept, since there is none: the sites asked in a round and every
draw of a site come from the seed, the site and the round. The JSON is written last, so a state that was cut off has
none.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dsm_core.config import Config
from dsm_core.data import LabelContract
from dsm_core.durable import replace_file, sync_folder
from dsm_core.text_space import TextSpace
from strategies.query_fedavg import ServerState

FORMAT = 1
FURTHER = "further:"
# What may differ between the run that wrote a state and the one that reads it: where things lie, and how many threads.
LOCAL_KEYS = (
    "name",
    "out",
    "resume",
    "threads",
    "dry_run",
    "sites_dir",
    "eval_dir",
    "start",
    "text.bank",
    "text.weights",
)


class StateError(RuntimeError):
    """A state that cannot be written, read or used; the message says what was found and what to do."""


class DamagedState(ValueError):
    """A state whose files are not as they were written."""


@dataclass(frozen=True)
class SavedState:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        further: tensors that the caller keeps beside the server's, by group.
    """

    state: ServerState
    contracts: dict[str, LabelContract]
    text: TextSpace
    further: dict[str, dict[str, NDArray]] = field(default_factory=dict)


def write_state(folder: Path, saved: SavedState, config: Config) -> None:
    """Add a state to the folder.

    Raises:
        StateError: the disk is full, or the folder cannot be written; the states before it stay as they are.
    """
    path = folder / f"round-{saved.state.round:06d}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = folder / f"text-{saved.text.hash[:16]}.safetensors"
        if not text.exists():
            replace_file(text, saved.text.to_bytes())
        tensors = path.with_suffix(".safetensors")
        about = {
            "format": FORMAT,
            "round": saved.state.round,
            "classes": list(saved.state.classes),
            "text": text.name,
            "text_hash": saved.text.hash,
            "tensors": tensors.name,
            "tensors_sha256": _write_tensors(tensors, _flatten(saved)),
            "config": _run_config(config),
            "contracts": {site: contract.to_dict() for site, contract in saved.contracts.items()},
            "history": list(saved.state.history),
        }
        about["checksum"] = _checksum(about)
        replace_file(path, json.dumps(about).encode())
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise StateError(
            f"the state of round {saved.state.round} could not be written ({cause}); make room on the disk of the run "
            "folder, then resume the run"
        ) from error


def read_state(path: Path, config: Config) -> SavedState:
    """The state that a JSON file describes.

    Raises:
        DamagedState: a file is missing, cut off or altered.
        StateError: the state is of another format, or of a run with another configuration.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about.pop("checksum") != _checksum(about):
            raise ValueError("its checksum does not fit")
        if about["format"] != FORMAT:
            raise StateError(f"{path.stem} has format {about['format']}, this release reads format {FORMAT}")
        if differences := _differences(about["config"], _run_config(config)):
            raise StateError(f"{path.stem} belongs to a run with another configuration: {'; '.join(differences)}")
        tensors = path.with_name(about["tensors"])
        if _sha256(tensors) != about["tensors_sha256"]:
            raise ValueError("the checksum of its tensors does not fit")
        groups = _unflatten(load_file(tensors))
        text = TextSpace.load(path.with_name(about["text"]))
        if text.hash != about["text_hash"]:
            raise ValueError("its text space is another one")
        contracts = {site: LabelContract.from_dict(content) for site, content in about["contracts"].items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise DamagedState(f"{path.stem}: {cause}") from error
    state = ServerState(
        arrays=groups.get("arrays", {}),
        classes=tuple(about["classes"]),
        round=about["round"],
        momentum=groups.get("momentum", {}),
        history=tuple(about["history"]),
    )
    further = {name.removeprefix(FURTHER): held for name, held in groups.items() if name.startswith(FURTHER)}
    return SavedState(state, contracts, text, further)


def _write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> str:
    """Write them, on the disk when it returns; SHA-256 of the file."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        save_file({key: np.asarray(tensor, order="C") for key, tensor in tensors.items()}, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        digest = _sha256(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _flatten(saved: SavedState) -> dict[str, NDArray]:
    groups = {"arrays": saved.state.arrays, "momentum": saved.state.momentum}
    groups |= {f"{FURTHER}{name}": arrays for name, arrays in saved.further.items()}
    return {f"{group}/{key}": array for group, arrays in groups.items() for key, array in arrays.items()}


def _unflatten(tensors: Mapping[str, NDArray]) -> dict[str, dict[str, NDArray]]:
    groups: dict[str, dict[str, NDArray]] = {}
    for name in sorted(tensors):
        group, _, key = name.partition("/")
        groups.setdefault(group, {})[key] = tensors[name]
    return groups


def _run_config(config: Config) -> dict[str, Any]:
    """The configuration by dotted keys, without what belongs to one machine."""
    found: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(asdict(config))).items():
        found |= {f"{key}.{name}": held for name, held in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in found.items() if key not in LOCAL_KEYS}


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}={then.get(key, 'not known')} there, {now.get(key, 'not known')} here"
        for key in sorted({*then, *now})
        if then.get(key, "not known") != now.get(key, "not known")
    ]
