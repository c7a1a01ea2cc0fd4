"""What is to be run? The keys typed after `dsm-server start`, checked and filled in: a new run, or a stopped one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config
from server.consortium import Consortium
from strategies.deployment.errors import DeploymentError

_NAMES_THE_RUN = ("name", "out")


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        overrides: keys of the run's configuration, `KEY=VALUE`.
        folder: where the run leaves its checkpoint.
        sites: how many must be connected before it begins.
        wait_s: how long to wait for them.
    """

    overrides: tuple[str, ...]
    folder: Path
    sites: int
    wait_s: float


def new_order(consortium: Consortium, keys: Sequence[str], sites: int | None, wait_s: float) -> Order:
    """The order for keys typed on a command line; absent ones are filled in for this consortium.

    Raises:
        DeploymentError: an unknown key, no member, fewer members than wanted, or a run folder that exists.
    """
    members = len(consortium.members())
    wanted = _checked(members if sites is None else sites, members)
    name = time.strftime("%Y%m%d-%H%M%S")
    keys = [f"out={consortium.folder / 'runs'}", f"name={name}", *keys, f"sites={wanted}"]
    config = _composed(keys)
    folder = Path(config.out).resolve() / (config.name or name)
    if folder.exists():
        raise DeploymentError(f"{folder} holds another run; choose another name=NAME, or go on with it: --resume")
    return Order((*keys, f"out={folder.parent}"), folder, wanted, wait_s)


def resumed_order(consortium: Consortium, keys: Sequence[str], sites: int | None, wait_s: float) -> Order:
    """The order to go on with a run that was stopped, with its own configuration.

    Args:
        keys: `name=` of the run, which may be left out where there is one only; of the others `threads=` may change.

    Raises:
        DeploymentError: no stopped run, several of them, a key that would make it another run, or too few members.
    """
    from server.resume import recall_config  # reads states, so PyTorch comes with it

    run = _stopped_run(_composed([f"out={consortium.folder / 'runs'}", *keys]))
    overrides = (f"resume={run}", *(key for key in keys if key.partition("=")[0] not in _NAMES_THE_RUN))
    try:
        config, folder = recall_config(overrides)
    except ConfigError as error:
        raise DeploymentError(f"{error}") from error
    members = len(consortium.members())
    # A site that has left since is not waited for; the run's quorum decides whether that is enough.
    return Order(overrides, folder, _checked(min(config.sites, members) if sites is None else sites, members), wait_s)


def _stopped_run(config: Config) -> Path:
    from server.resume import stopped_runs

    out = Path(config.out).resolve()
    if config.name:
        return out / config.name
    found = stopped_runs(out)
    if len(found) != 1:
        names = ", ".join(run.name for run in found) or "none"
        raise DeploymentError(f"{len(found)} runs in {out} were stopped: {names}; say which goes on: name=NAME")
    return found[0]


def _composed(keys: Sequence[str]) -> Config:
    try:
        return compose_config(keys)
    except ConfigError as error:
        raise DeploymentError(f"{error}") from error


def _checked(wanted: int, members: int) -> int:
    if not 0 < wanted <= members:
        raise DeploymentError(f"{wanted} sites are wanted and {members} have been accepted; `dsm-server status`")
    return wanted
