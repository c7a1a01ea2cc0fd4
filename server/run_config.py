"""What does a run carry from the command line to its ServerApp? The name of an order; its words stay in the folder.

Flower hands the run configuration to every site, so a deployed run carries nothing in it that says where the
coordinator keeps its files. The ServerApp is told the consortium's folder by a variable of the SuperExec that starts
it, and finds there what was ordered.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_core.config import ConfigError
from server.consortium import NODE_NAMES, ORDER_FILE
from strategies.deployment.files import write_file

HOME = "DSM_CONSORTIUM"  # variable of the coordinator's SuperExec: the consortium's folder; unset in a simulation
OVERRIDES = "overrides"  # KEY=VALUE words of a simulation, quoted as in a shell; empty in a deployed run
ORDER = "order"  # the name of a deployed run's order; empty in a simulation
KEYS = (OVERRIDES, ORDER, "sites-dir")


@dataclass(frozen=True)
class Task:
    """What a ServerApp is to do.

    Attributes:
        words: overrides of the configuration.
        home: the consortium's folder; None in a simulation.
        names: the site that each node is registered as by now; None in a simulation.
    """

    words: tuple[str, ...]
    home: Path | None = None
    names: Callable[[], Mapping[int, str]] | None = None


def leave_order(consortium: Path, overrides: Sequence[str]) -> dict[str, str]:
    """Put the words of a deployed run where its ServerApp finds them, in the place of the order before.

    Returns:
        Flower's run configuration, which every site receives.
    """
    name = secrets.token_hex(8)
    write_file(consortium / ORDER_FILE, json.dumps({"order": name, "overrides": list(overrides)}, indent=1) + "\n")
    return {OVERRIDES: "", ORDER: name}


def read_task(run_config: Mapping[str, Any]) -> Task:
    """What the run configuration and this process's environment ask for.

    Raises:
        ConfigError: the run's order is not there, or a later one has taken its place.
    """
    home, order = os.environ.get(HOME, ""), str(run_config.get(ORDER, ""))
    if not home:
        if order:
            raise ConfigError(f"the run has order {order} and {HOME} is not set; `dsm-server start` sets it")
        return Task(tuple(shlex.split(str(run_config.get(OVERRIDES, "")))))
    folder = Path(home)
    return Task(_ordered(folder / ORDER_FILE, order), folder, lambda: _node_names(folder / NODE_NAMES))


def _ordered(path: Path, order: str) -> tuple[str, ...]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); begin the run with `dsm-server start`") from error
    if content["order"] != order:
        raise ConfigError(
            f"the run has order {order or '(none)'}, and {content['order']} is the latest; "
            "begin runs with `dsm-server start`"
        )
    return tuple(content["overrides"])


def _node_names(path: Path) -> dict[int, str]:
    """Read anew at every call: a site may be registered while the run goes on."""
    return {int(node): site for node, site in json.loads(path.read_text(encoding="utf-8")).items()}
