"""With which configuration does a stopped run go on? Its own, kept beside its state.

`config.yaml` of a run folder is made to be shown and holds no path of the machine; what a run needs to go on lies in
`state/config.json`, readable by its owner only, and goes when the run is finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dsm_core.config import Config, ConfigError, config_from_dict
from dsm_core.config_words import compose_config
from dsm_core.durable import replace_file
from server.state_file import StateError

STATE = "state"
CONFIG = "config.json"
MAY_CHANGE = ("resume", "out", "threads")


def state_folder(run: Path, method: str) -> Path:
    """Where a run folder keeps the states of one federated run."""
    return run / STATE / method


def remember_config(run: Path, config: Config) -> None:
    """Keep the configuration of a run, so that `resume=` finds it; paths are made absolute.

    Raises:
        StateError: the disk is full, or the folder cannot be written.
    """
    content = asdict(replace(config, text=config.text.with_absolute_paths()))
    for key in ("sites_dir", "eval_dir", "start"):
        if content[key] and Path(content[key]).exists():
            content[key] = os.path.abspath(content[key])
    path = run / STATE / CONFIG
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(path, json.dumps(content, indent=1).encode(), mode=0o600)
    except OSError as error:
        raise StateError(
            f"the configuration could not be kept in {STATE}/ of the run folder ({error.strerror})"
        ) from error


def recall_config(words: Sequence[str]) -> tuple[Config, Path]:
    """The configuration of the run that `resume=RUN_DIR` among these overrides names, and that folder.

    Raises:
        ConfigError: other overrides, which would make it another run; a folder without a run, or a finished run.
    """
    asked = compose_config(words)
    run = Path(os.path.abspath(asked.resume or ""))
    keys = [word.partition("=")[0].lstrip("+~") for word in words]
    if others := sorted({key for key in keys if key not in MAY_CHANGE}):
        raise ConfigError(
            f"resume={asked.resume} goes on with the run's own configuration; leave out {', '.join(others)} "
            f"(only out and threads may change), or begin a new run"
        )
    path = run / STATE / CONFIG
    if not run.is_dir():
        raise ConfigError(f"resume={asked.resume} is no folder; give the folder of the run that was stopped")
    if not path.is_file():
        raise ConfigError(
            f"resume={asked.resume} holds no {STATE}/{CONFIG}: the run is finished, or it stopped before its first "
            "round; begin it anew"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{STATE}/{CONFIG} of resume={asked.resume} cannot be read ({error})") from error
    config = config_from_dict(content)
    threads = asked.threads if "threads" in keys else config.threads
    return replace(config, threads=threads, out=asked.out if "out" in keys else str(run.parent)), run


def stopped_runs(out: Path) -> list[Path]:
    """The run folders in a folder that can be gone on with, by name."""
    return sorted(path.parent.parent for path in out.glob(f"*/{STATE}/{CONFIG}"))


def forget_state(run: Path) -> None:
    """Remove what a finished run needs no more."""
    shutil.rmtree(run / STATE, ignore_errors=True)
