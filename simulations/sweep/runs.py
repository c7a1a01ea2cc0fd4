"""How is a run of a sweep brought to its end? Each in a process of its own, begun, resumed or skipped.

A private run that was stopped begins anew: what its sites have charged pays for one passage of its rounds, not for two.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.results import write_atomically
from simulations.sweep.plan import Point, SweepError

_POLL_S = 1.0
PUBLIC_RUN = "public"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Folder:
    """A sweep's folder and what lies where in it."""

    path: Path

    runs = property(lambda self: self.path / "runs")
    about = property(lambda self: self.path / "sweep.json")
    failures_path = property(lambda self: self.path / "failures.json")
    table = property(lambda self: self.path / "table.json")
    report = property(lambda self: self.path / "report.html")
    public_checkpoint = property(lambda self: self.runs / PUBLIC_RUN / "checkpoints" / "last")

    def run(self, name: str) -> Path:
        """Folder of one run."""
        return self.runs / name

    def is_finished(self, name: str) -> bool:
        """Whether a run came to its end."""
        info = self.run_info(name)
        return bool(info.get("finished")) and (self.run(name) / "report.html").exists()

    def run_info(self, name: str) -> dict[str, Any]:
        """`run.json` of a run; empty where there is none yet."""
        try:
            return json.loads((self.run(name) / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def failures(self) -> dict[str, str]:
        """Why runs failed, by name; of those that have not succeeded since."""
        try:
            found = json.loads(self.failures_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {name: reason for name, reason in found.items() if not self.is_finished(name)}

    def note_failure(self, name: str, reason: str | None) -> None:
        """Write down why a run failed; None takes an earlier reason back."""
        found = {other: why for other, why in self.failures().items() if other != name}
        write_atomically(self.failures_path, json.dumps(found | ({name: reason} if reason else {}), indent=1) + "\n")


@contextmanager
def only_one(folder: Folder) -> Iterator[int]:
    """Hold the sweep's lock; yields its file, which a run holds open too: a killed sweep's last run keeps the lock.

    Raises:
        SweepError: another process works in the folder.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    file = os.open(folder.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise SweepError(
            f"{folder.path} is in use: a sweep, or the last run of one that was killed, still works there; "
            f"wait for it, or find it with `fuser {folder.path / '.lock'}`"
        ) from None
    try:
        yield file
    finally:
        os.close(file)


def do_run(
    folder: Folder, name: str, words: Sequence[str], is_private: bool, sites_out: Path, say: Say, lock: int
) -> str | None:
    """Bring a run to its end; returns why it failed, or None.

    Args:
        words: for dsm-simulate, all but name and out.
        sites_out: where generated sites are kept for all runs.
        say: is told the run's last line of progress.
        lock: of `only_one`.
    """
    run = folder.run(name)
    if run.exists() and not is_private and (run / "state" / "config.json").exists():
        command = [path_word("resume", run)]
    else:
        shutil.rmtree(run, ignore_errors=True)
        folder.runs.mkdir(parents=True, exist_ok=True)
        _share_sites(folder.runs, sites_out)
        command = [*words, path_word("out", folder.runs), f"name={name}"]
    log = folder.path / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.run", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
        )
        try:
            while process.poll() is None:
                say(_last_line(log))
                time.sleep(_POLL_S)
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if process.returncode == 0 and folder.is_finished(name):
        folder.note_failure(name, None)
        return None
    reason = _reason(process.returncode, log)
    folder.note_failure(name, reason)
    return reason


def path_word(key: str, path: Path | str) -> str:
    """An override that sets a key to a path, in quotes where Hydra's grammar wants them."""
    text = f"{path}"
    if re.fullmatch(r"[\w/.+@%-]+", text):
        return f"{key}={text}"
    quoted = text.replace("'", r"\'")
    return f"{key}='{quoted}'"


def _share_sites(runs: Path, sites_out: Path) -> None:
    """Let all runs find one copy of the generated sites, where other sweeps and runs have theirs."""
    sites = sites_out / "sites"
    sites.mkdir(parents=True, exist_ok=True)
    link = runs / "sites"
    if not link.is_symlink() and not link.exists():
        link.symlink_to(os.path.relpath(sites, runs), target_is_directory=True)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _reason(code: int, log: Path) -> str:
    text = log.read_text(errors="replace").replace("\r", "\n")
    said = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("dsm-simulate: ")]
    if said and code in (1, 2):
        return said[-1]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with code {code} and no report: {_last_line(log)[:200]}"


def time_left_s(points: Sequence[Point], infos: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Seconds that the runs still to be done will take, judged by finished ones of their kind; None before any.

    Args:
        points: all runs. infos: `run.json` of the finished ones.
    """
    took: dict[str, list[float]] = {}
    for point in points:
        if point.name in infos:
            took.setdefault(point.kind, []).append(sum(infos[point.name].get("seconds", {}).values()))
    if not took:
        return None
    mean = {kind: sum(seconds) / len(seconds) for kind, seconds in took.items()}
    anything = max(mean.values())
    return sum(mean.get(point.kind, anything) for point in points if point.name not in infos)
