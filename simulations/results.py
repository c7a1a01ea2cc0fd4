"""Where does a run write what it did? The run folder, its files and their names."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dsm_core.config import Config, config_hash
from simulations.provenance import installed_versions, portable_command, portable_word, source_commit


class RunFolderError(ValueError):
    """A run folder that cannot be written; the message says what was found there and what to do."""


@dataclass
class RunFolder:
    """One run's folder and the names of everything in it.

    Attributes:
        path: the folder, `OUT/NAME`.
        info: what `run.json` holds so far.
    """

    path: Path
    info: dict[str, Any] = field(default_factory=dict)
    _writers: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def create(
        cls, out: str | Path, name: str | None, config: Config, command: str | Sequence[str], resume: bool = False
    ) -> RunFolder:
        """Make the folder and write `config.yaml` and the first `run.json`.

        Args:
            name: the folder's name; the time of day when None.
            command: what was typed, as a line or as a list of arguments; absolute paths in it are made relative.
            resume: go on in a folder that already holds a run; its history stays.

        Raises:
            RunFolderError: the folder holds something and `resume` is False, or the name is not a plain name.
        """
        name = time.strftime("%Y-%m-%d_%H-%M-%S") if name is None else name
        if not re.fullmatch(r"\w[\w.+=-]*", name):
            raise RunFolderError(f"name={name!r} is no folder name; use letters, digits and . _ - + =")
        path = Path(out) / name
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file, a run wants a folder there; choose another name=")
        is_used = path.is_dir() and any(path.iterdir())
        if is_used and not resume:
            raise RunFolderError(
                f"{path} already holds a run and is not overwritten; choose another name= or resume it"
            )
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        line = portable_command(command)
        earlier = _read_info(folder.info_path) if is_used else {}
        if earlier:
            folder.info = earlier
            earlier.setdefault("resumed", []).append(line)
        else:
            folder.info["command"] = line
        _drop_torn_line(folder.history_path)
        _write_config(folder.config_path, config)
        commit, dirty = source_commit()
        folder.write_run_info(
            name=name, commit=commit, dirty=dirty, seed=config.seed, config_hash=config_hash(config),
            nsd_tolerance_mm=config.nsd_tolerance_mm, versions=installed_versions(), seconds={}, finished=False,
        )  # fmt: skip
        return folder

    config_path = property(lambda self: self.path / "config.yaml")
    info_path = property(lambda self: self.path / "run.json")
    history_path = property(lambda self: self.path / "history.jsonl")
    matrix_path = property(lambda self: self.path / "matrix.json")
    report_path = property(lambda self: self.path / "report.html")
    tensorboard_dir = property(lambda self: self.path / "tensorboard")
    overlays_dir = property(lambda self: self.path / "overlays")
    last_checkpoint = property(lambda self: self.path / "checkpoints" / "last")
    best_checkpoint = property(lambda self: self.path / "checkpoints" / "best")

    def log_round(self, method: str, record: Mapping[str, Any]) -> None:
        """Append one round to `history.jsonl` and its numbers to TensorBoard (one TensorBoard run a method)."""
        line = json.dumps(_finite({"method": method, **record}), allow_nan=False)
        with self.history_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        writer, step = self._writer(method), int(record["round"])
        for key in ("loss", "server_step", "val_dice", "seconds"):
            if record.get(key) is not None:
                writer.add_scalar(key, float(record[key]), step)
        for site, loss in record.get("site_losses", {}).items():
            if loss is not None:
                writer.add_scalar(f"site_loss/{site}", float(loss), step)
        writer.add_scalar("refused", len(record.get("refused", ())), step)

    def write_matrix(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the site x class matrix; a score that is not a number becomes null."""
        write_atomically(self.matrix_path, _to_json([dict(row) for row in rows]))

    def write_run_info(self, **fields: Any) -> None:
        """Add fields to `run.json`; a mapping (`seconds`, `sites`, `methods`) is merged into the one already there."""
        for key, value in fields.items():
            if isinstance(value, Mapping) and isinstance(self.info.get(key), dict):
                self.info[key] = {**self.info[key], **value}
            else:
                self.info[key] = dict(value) if isinstance(value, Mapping) else value
        write_atomically(self.info_path, _to_json(self.info))

    def seconds_of(self, method: str) -> float:
        """Seconds that the rounds of a method took so far, those of earlier starts included."""
        lines = self.history_path.read_text(encoding="utf-8").splitlines() if self.history_path.exists() else []
        return sum(record.get("seconds") or 0.0 for record in map(json.loads, lines) if record["method"] == method)

    def close(self) -> None:
        """Flush and close the TensorBoard files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, method: str) -> Any:
        if method not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[method] = SummaryWriter(str(self.tensorboard_dir / method), max_queue=100, flush_secs=30)
        return self._writers[method]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: a reader never meets half of it."""
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_config(path: Path, config: Config) -> None:
    from omegaconf import OmegaConf

    write_atomically(path, OmegaConf.to_yaml(_portable(json.loads(json.dumps(asdict(config))))))


def _portable(value: Any) -> Any:
    """The same configuration without absolute paths, at any depth."""
    if isinstance(value, dict):
        return {key: _portable(held) for key, held in value.items()}
    return portable_word(value) if isinstance(value, str) else value


def _read_info(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON ({error}); mend it, or choose another name=") from error


def _drop_torn_line(path: Path) -> None:
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        write_atomically(path, data[: data.rfind(b"\n") + 1])


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _to_json(value: Any) -> str:
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"
