"""How does a run reach the sites and its end? Wait for the sites, submit the app, watch until it has finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.supercore.fab import Fab

from dsm_core.config import ConfigError, compose_config
from server.consortium import Consortium
from server.control import Control, ControlFault, open_control, settle_members
from server.run_config import pack_run
from strategies.deployment.errors import DeploymentError

POLL_S = 1.0
SILENCE_S = 300.0  # the SuperLink may be down this long, as while it is started anew
COMPLETED = "finished:completed"

Say = Callable[[str], None]


class RunFault(DeploymentError):
    """A run that did not complete; the message says how it ended."""


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


def make_order(consortium: Consortium, keys: Sequence[str], sites: int | None, wait_s: float) -> Order:
    """The order for keys typed on a command line; absent ones are filled in for this consortium.

    Raises:
        DeploymentError: an unknown key, no member, fewer members than wanted, or a run folder that exists.
    """
    members = consortium.members()
    wanted = len(members) if sites is None else sites
    if not 0 < wanted <= len(members):
        raise DeploymentError(f"{wanted} sites are wanted and {len(members)} have been accepted; `dsm-server status`")
    name = time.strftime("%Y%m%d-%H%M%S")
    keys = [f"out={consortium.folder / 'runs'}", f"name={name}", *keys, f"sites={wanted}"]
    try:
        config = compose_config(keys)
    except ConfigError as error:
        raise DeploymentError(f"{error}") from error
    folder = Path(config.out).resolve() / (config.name or name)
    if folder.exists():
        raise DeploymentError(f"{folder} holds another run; choose another name=NAME")
    return Order((*keys, f"out={folder.parent}"), folder, wanted, wait_s)


def run_to_the_end(consortium: Consortium, order: Order, fab: Fab, tend: Callable[[], None], say: Say) -> Path:
    """Submit a run once its sites are connected and wait until it has finished; a run cut short is stopped.

    Args:
        tend: called about once a second, keeps the services alive.

    Returns:
        The run's folder.

    Raises:
        ControlFault: the SuperLink refuses the run.
        RunFault: the run failed, or not enough sites connected in time.
    """
    with open_control(consortium) as control:
        settle_members(consortium, control)
        _await_sites(control, order, tend, say)
        run = control.start_run(fab, pack_run(order.overrides, consortium.node_names, consortium.folder))
    say(f"run {run} of {order.sites} sites; results go to {order.folder}")
    try:
        _await_end(consortium, run, order, tend, say)
    except BaseException:
        _stop_quietly(consortium, run)
        raise
    return order.folder


def _await_sites(control: Control, order: Order, tend: Callable[[], None], say: Say) -> None:
    deadline, told = time.monotonic() + order.wait_s, ""
    while True:
        nodes = control.nodes()
        online = sorted(node.site for node in nodes if node.status == "online")
        absent = sorted(node.site for node in nodes if node.status != "online")
        if len(online) >= order.sites:
            return
        words = f"{len(online)} of {order.sites} sites are connected; waiting for {', '.join(absent)}"
        if words != told:
            told = words
            say(words)
        if time.monotonic() > deadline:
            raise RunFault(f"{words} has taken {order.wait_s:g} s; start them, or ask for fewer with --sites")
        tend()
        time.sleep(POLL_S)


def _await_end(consortium: Consortium, run: int, order: Order, tend: Callable[[], None], say: Say) -> None:
    rounds, heard = 0, time.monotonic()
    while True:
        tend()
        for record in _history(order.folder)[rounds:]:
            rounds += 1
            say(_line(record))
        try:
            with open_control(consortium) as control:
                status, details = control.run_status(run)
            heard = time.monotonic()
        except ControlFault as fault:
            if time.monotonic() - heard > SILENCE_S:
                raise RunFault(f"run {run} is lost after {rounds} rounds: {fault}, for {SILENCE_S:g} s") from fault
            status = details = ""
        if status.startswith("finished"):
            for record in _history(order.folder)[rounds:]:
                say(_line(record))
            if status != COMPLETED:
                raise RunFault(f"run {run} is {status} {details}".rstrip())
            return
        time.sleep(POLL_S)


def _history(folder: Path) -> list[dict]:
    path = folder / "history.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _line(record: dict) -> str:
    absent = "; ".join(f"{site}: {reason}" for site, reason in {**record["refused"], **record["failed"]}.items())
    words = f"round {record['round']}: loss {record['loss']}, {record['seconds']:.1f} s, {', '.join(record['sites'])}"
    return words + (absent and f"; {absent}")


def _stop_quietly(consortium: Consortium, run: int) -> None:
    try:
        with open_control(consortium) as control:
            control.stop_run(run)
    except ControlFault:
        pass  # the SuperLink is gone, and the run with it
