"""What the coordinator leaves on disk: a line a round, and the last checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_core.checkpoint import save_checkpoint
from dsm_core.config import ConfigError
from dsm_core.durable import replace_file
from server.federation import Federation
from server.waiting import HISTORY
from strategies.query_fedavg import ServerState


@dataclass(frozen=True)
class RunRecord:
    """The result folder of one run: `history.jsonl` and `checkpoints/last`."""

    folder: Path
    method: str = "federated"

    @classmethod
    def create(cls, out: str, name: str) -> RunRecord:
        """A new folder for results.

        Raises:
            ConfigError: `out` is not absolute (under Flower the working directory is the daemon's), or holds this name.
        """
        folder = Path(out) / name
        if not folder.is_absolute():
            raise ConfigError(f"out={out} is relative, wanted an absolute folder: add out=/... to the overrides")
        if folder.exists():
            raise ConfigError(f"{folder} holds another run; choose another name, remove it, or go on with it: resume=")
        folder.mkdir(parents=True)
        return cls(folder)

    def add_round(self, round: int, record: dict[str, Any], state: ServerState) -> None:
        """Append the record of a round, and print a line for `flwr log` and `flwr run --stream`."""
        with (self.folder / HISTORY).open("a", encoding="utf-8") as history:
            history.write(json.dumps({"method": self.method, **record}) + "\n")
        absent = "; ".join(f"{site}: {reason}" for site, reason in {**record["refused"], **record["failed"]}.items())
        print(
            f"round {round} ({record['stage']}): loss {record['loss']}, {len(record['sites'])} sites"
            + (absent and f"; {absent}"),
            flush=True,
        )

    def save(self, federation: Federation, state: ServerState) -> None:
        """Save the global model of a state as the last checkpoint."""
        extra = {"round": state.round, "seed": federation.config.seed}
        model = federation.model_of(state)
        save_checkpoint(self.folder / "checkpoints" / "last", model, federation.config, federation.text, extra)


def rewind_history(run: Path, method: str, round: int) -> None:
    """Drop from `history.jsonl` what comes after a round of a method, so that a resumed run writes it once; with it a
    line that was cut off."""
    path = run / HISTORY
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith(b"\n") and not _is_after(line, method, round)]
    if kept != lines:
        replace_file(path, b"".join(kept))


def _is_after(line: bytes, method: str, round: int) -> bool:
    try:
        record = json.loads(line)
        return record["method"] == method and record["round"] > round
    except (ValueError, KeyError, TypeError):
        return False  # whoever reads the history names the fault
