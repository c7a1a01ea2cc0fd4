"""What the coordinator leaves on disk: a line a round, and the last checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_core.checkpoint import save_checkpoint
from dsm_core.config import ConfigError
from server.federation import Federation
from strategies.query_fedavg import ServerState


@dataclass(frozen=True)
class RunRecord:
    """The result folder of one run: `history.jsonl` and `checkpoints/last`."""

    folder: Path

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
            raise ConfigError(f"{folder} holds another run; choose another name, or remove it")
        folder.mkdir(parents=True)
        return cls(folder)

    def add_round(self, round: int, record: dict[str, Any], state: ServerState) -> None:
        """Append the record of a round, and print a line for `flwr log` and `flwr run --stream`."""
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(record) + "\n")
        absent = "; ".join(f"{site}: {reason}" for site, reason in {**record["refused"], **record["failed"]}.items())
        print(
            f"round {round}: loss {record['loss']}, {len(record['sites'])} sites" + (absent and f"; {absent}"),
            flush=True,
        )

    def save(self, federation: Federation, state: ServerState) -> None:
        """Save the global model of a state as the last checkpoint."""
        extra = {"round": state.round, "seed": federation.config.seed}
        model = federation.model_of(state)
        save_checkpoint(self.folder / "checkpoints" / "last", model, federation.config, federation.text, extra)
