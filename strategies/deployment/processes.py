"""Is a program running, and how is it started and ended? Files and signals; no process of ours outlives `stop`.

A program holds a lock on its file `processes/NAME` as long as it lives, because it inherits the open file. So the file
of a program that was killed, or of one that ran before a reboot, is never taken for a running one.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import make_private_folder
from strategies.deployment.flower import LOOPBACK, is_port_taken

POLL_S = 0.1


@dataclass(frozen=True)
class Program:
    """One long-running program.

    Attributes:
        environment: what it needs besides the environment that it is started in.
        port: where it listens, must be free at its start; 0 where it listens nowhere.
        host: the address that it listens on.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    host: str = LOOPBACK


@dataclass(frozen=True)
class Place:
    """The folder of a consortium or a site, as far as its processes are concerned."""

    folder: Path

    def lock(self, name: str) -> Path:
        return self.folder / "processes" / name

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def mark(self, name: str) -> tuple[str, str]:
        """Variable and value that a program carries, and with it everything that it starts."""
        return "DSM_PROCESS", f"{self.folder}/{name}"


def launch(place: Place, program: Program) -> subprocess.Popen[bytes]:
    """Start a program in the background, its output appended to its log.

    Raises:
        DeploymentError: it runs already, its port is taken, or there is no such program.
    """
    mark, value = place.mark(program.name)
    make_private_folder(place.lock(program.name).parent)
    make_private_folder(place.log(program.name).parent)
    with place.lock(program.name).open("a+b") as held, place.log(program.name).open("ab") as log:
        _hold(held.fileno(), program.name, place)
        if program.port and is_port_taken(program.port, program.host):
            raise DeploymentError(
                f"{program.name} wants port {program.port} of {program.host}, and another program listens there; "
                f"end it (`ss -ltnp sport = :{program.port}` names it), or choose another port"
            )
        try:
            process = subprocess.Popen(
                program.command,
                env={**os.environ, **program.environment, mark: value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(held.fileno(),),
            )
        except OSError as error:
            raise DeploymentError(f"{program.command[0]} cannot be started: {error.strerror}") from error
        held.truncate(0)
        held.write(f"{process.pid}\n".encode())
    return process


def hold_lock(place: Place, name: str) -> int:
    """Mark this very process as running under a name, until it ends or closes the returned descriptor.

    Raises:
        DeploymentError: another one runs under this name.
    """
    make_private_folder(place.lock(name).parent)
    descriptor = os.open(place.lock(name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _hold(descriptor, name, place)
    except DeploymentError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def running_pid(place: Place, name: str) -> int | None:
    """Process id of a running program, None where it does not run."""
    try:
        with place.lock(name).open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0)
    except FileNotFoundError:
        pass
    return None


def stop(place: Place, names: Iterable[str], timeout_s: float = 20.0) -> list[str]:
    """End programs and everything that they started: asked first, killed after the deadline.

    Args:
        names: in the order in which they are asked to end.

    Returns:
        The names of those that were running.

    Raises:
        DeploymentError: something still runs after it was killed.
    """
    names = list(names)
    found = {name: pid for name in names if (pid := running_pid(place, name))}
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for pid in found.values() if sent == signal.SIGTERM else _left(place, names):
            _signal(pid, sent)
        deadline = time.monotonic() + timeout_s
        was_rest_asked = False
        while left := _left(place, names):
            if time.monotonic() > deadline:
                break
            if not was_rest_asked and not any(running_pid(place, name) for name in found):
                was_rest_asked = True
                for pid in left:  # what a program that has ended, or was killed, left behind
                    _signal(pid, sent)
            time.sleep(POLL_S)
        else:
            return list(found)
    raise DeploymentError(
        f"processes {_left(place, names)} of {', '.join(names)} still run {2 * timeout_s:g} s after they were asked to "
        f"end and then killed; the system keeps them, perhaps over a disk that does not answer"
    )


def processes_with(variable: str, value: str) -> list[int]:
    """Processes that were started with a variable, this one excepted; none where the system has no /proc."""
    mark = f"{variable}={value}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return sorted(set(found) - {os.getpid()})


def _left(place: Place, names: Iterable[str]) -> set[int]:
    """The programs that run, and what they or their predecessors of the same names started."""
    leaders = {pid for name in names if (pid := running_pid(place, name))}
    return leaders | {pid for name in names for pid in processes_with(*place.mark(name))}


def _hold(descriptor: int, name: str, place: Place) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DeploymentError(f"{name} runs already, process {running_pid(place, name)}") from None


def _signal(pid: int, sent: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sent)
