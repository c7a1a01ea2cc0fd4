"""What does a run carry from the command line to its ServerApp? Flower's run configuration, packed and unpacked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OVERRIDES = "overrides"  # KEY=VALUE words, quoted as in a shell
NODE_NAMES = "node-names"  # a file of the coordinator: which node is which site; empty in a simulation
CONSORTIUM_DIR = "consortium-dir"  # the consortium's folder: audit log and text spaces; empty in a simulation
KEYS = (OVERRIDES, NODE_NAMES, CONSORTIUM_DIR, "sites-dir")


def pack_run(overrides: Sequence[str], node_names: Path, consortium: Path) -> dict[str, str]:
    """The run configuration of a deployed run."""
    return {OVERRIDES: shlex.join(overrides), NODE_NAMES: f"{node_names}", CONSORTIUM_DIR: f"{consortium}"}


def read_overrides(run_config: Mapping[str, Any]) -> list[str]:
    """The words of the command line."""
    return shlex.split(str(run_config.get(OVERRIDES, "")))


def read_node_names(run_config: Mapping[str, Any]) -> dict[int, str]:
    """The site that each node was registered as; empty in a simulation."""
    path = str(run_config.get(NODE_NAMES, ""))
    return {int(node): site for node, site in json.loads(Path(path).read_text()).items()} if path else {}


def read_consortium(run_config: Mapping[str, Any]) -> Path | None:
    """The consortium's folder; None in a simulation."""
    folder = str(run_config.get(CONSORTIUM_DIR, ""))
    return Path(folder) if folder else None
