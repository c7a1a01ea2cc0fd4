"""How does a command go on in the background, and how is it told to end? A new session, and signals as exceptions."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import make_private_folder
from strategies.deployment.processes import Place, hold_lock, running_pid, stop

SUPERVISOR = "supervisor"
READY = "DSM_READY"  # number of the descriptor on which a command in the background says that it is ready
LOG_TAIL = 2000
STOP_TIMEOUT_S = 60.0  # the supervisor itself waits for its programs


class Ended(Exception):
    """The command was asked to end (SIGTERM, SIGINT, SIGHUP)."""


@contextmanager
def endable() -> Iterator[None]:
    """A request to end (SIGTERM, SIGINT, SIGHUP) is raised as `Ended`; after the first one others are ignored."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # the end takes its time, and asking twice does not shorten it
        raise Ended(signal.Signals(number).name)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def running_as(place: Place, name: str) -> Iterator[None]:
    """Be the one process of a folder that runs under a name.

    Raises:
        DeploymentError: another one does.
    """
    lock = hold_lock(place, name)
    try:
        yield
    finally:
        os.close(lock)


def tell_ready() -> None:
    """Tell the command that started this one in the background that all is well; without one, nothing happens."""
    if number := os.environ.pop(READY, None):
        os.write(int(number), b"1")
        os.close(int(number))


def go_on_in_background(
    place: Place, module: str, words: Sequence[str], timeout_s: float, name: str = SUPERVISOR
) -> int:
    """Run a command line in a session of its own, until it says that it is ready or ends.

    Args:
        module: run as `python -m module`. words: its command line. name: under which it will run, and of its log.

    Returns:
        Its process id.

    Raises:
        DeploymentError: it ended before it was ready, its last words shown, or was not ready in time.
    """
    if pid := running_pid(place, name):
        raise DeploymentError(f"it runs already, process {pid}")
    reader, writer = os.pipe()
    make_private_folder(place.log(name).parent)
    with place.log(name).open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env={**os.environ, READY: f"{writer}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(writer,),
        )
    os.close(writer)
    try:
        answered, _, _ = select.select([reader], [], [], timeout_s)
        if answered and os.read(reader, 1) == b"1":
            return process.pid
    finally:
        os.close(reader)
    if answered:
        process.wait()
        with place.log(name).open("rb") as log:
            log.seek(start)
            raise DeploymentError(log.read().decode(errors="replace").strip()[-LOG_TAIL:] or "it ended without a word")
    process.terminate()
    process.wait()
    raise DeploymentError(f"it was not ready within {timeout_s:g} s; its words are in {place.log(name)}")


def stop_everything(place: Place, commands: Sequence[str], programs: Sequence[str]) -> list[str]:
    """End the commands that look after programs, then whatever is left of the programs; returns what was running."""
    running = [name for name in programs if running_pid(place, name)]
    found = stop(place, commands, STOP_TIMEOUT_S)
    stop(place, programs)
    return found + running


def say(words: str) -> None:
    """A line of a long-running command, after the time of day. A full disk under its log must not end the command."""
    with suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)
