"""How does a run reach the sites and its end? Wait for the sites, submit the app, watch until it has finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from flwr.supercore.fab import Fab

from server.consortium import Consortium
from server.control import Control, ControlFault, open_control, settle_members
from server.orders import Order
from server.resume import stopped_runs
from server.run_config import leave_order
from server.waiting import HISTORY, LINE_EVERY_S, mark_stopped, read_progress, wait_line
from strategies.deployment.errors import DeploymentError

POLL_S = 1.0
SILENCE_S = 300.0  # the SuperLink may be down this long, as while it is started anew
COMPLETED = "finished:completed"
_NO_HEARTBEAT = "No heartbeat"  # Flower's details of a run whose process it misses
_SILENT_END = "its process ended without a word: killed, or out of memory"

Say = Callable[[str], None]


class RunFault(DeploymentError):
    """A run that did not complete; the message says how it ended."""


def run_to_the_end(consortium: Consortium, order: Order, fab: Fab, tend: Callable[[], None], say: Say) -> Path:
    """Submit a run once its sites are connected and wait until it has finished; a run cut short is stopped.

    A run that goes on in the SuperLink, as after its command was killed, is stopped first: one is watched at a time.

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
        for left in control.unfinished_runs():
            say(f"run {left} was left to itself and is stopped")
            control.stop_run(left)
        _await_sites(control, order, tend, say)
        told = set(_history(order.folder))
        run = control.start_run(fab, leave_order(consortium.folder, order.overrides))
    say(f"run {run} of {order.sites} sites; results go to {order.folder}")
    try:
        _await_end(consortium, run, order.folder, told, tend, say)
    except BaseException as error:
        _stop_quietly(consortium, run)
        mark_stopped(order.folder, f"{error}" or type(error).__name__)
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


def _await_end(
    consortium: Consortium, run: int, folder: Path, told: set[str], tend: Callable[[], None], say: Say
) -> None:
    heard = said = time.monotonic()
    while True:
        tend()
        if _tell_rounds(folder, told, say):
            said = time.monotonic()
        if time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            _tell_wait(folder, say)
        try:
            with open_control(consortium) as control:
                status, details = control.run_status(run)
            heard = time.monotonic()
        except ControlFault as fault:
            if time.monotonic() - heard > SILENCE_S:
                raise RunFault(
                    f"run {run} is lost after {len(told)} rounds: {fault}, for {SILENCE_S:g} s{_way_on(folder)}"
                ) from fault
            status = details = ""
        if status.startswith("finished"):
            _tell_rounds(folder, told, say)
            if status != COMPLETED:
                reason = mark_stopped(folder, _SILENT_END if _NO_HEARTBEAT in details else details or status)
                raise RunFault(f"run {run} is {status}: {reason}{_way_on(folder)}")
            return
        time.sleep(POLL_S)


def _way_on(folder: Path) -> str:
    can_go_on = folder in stopped_runs(folder.parent)
    return f"; `dsm-server start --resume name={folder.name}` goes on with it" if can_go_on else ""


def _tell_rounds(folder: Path, told: set[str], say: Say) -> bool:
    """Say every line of the history that was not said; a resumed run takes lines back and writes them anew.

    True where there was one.
    """
    new = [line for line in _history(folder) if line not in told]
    for line in new:
        told.add(line)
        say(_line(json.loads(line)))
    return bool(new)


def _tell_wait(folder: Path, say: Say) -> None:
    progress = read_progress(folder)
    if line := wait_line(progress, time.time() - progress.get("since", 0.0)):
        say(line)


def _history(folder: Path) -> list[str]:
    path = folder / HISTORY
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


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
