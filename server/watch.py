"""`dsm-server watch RUN_DIR`: how far is a run, and for whom does it wait? Reads the run folder and asks nobody."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from server.run_table import Progress, Record, read_history, refusals, run_table, silence
from server.waiting import LINE_EVERY_S, PROGRESS, WAITS, read_progress, wait_line

POLL_S = 0.5
ENDS = {"finished": 0, "stopped": 1}  # exit code of a run that has ended

Show = Callable[[Progress, Sequence[Record]], None]


def add_commands(commands: Any) -> None:
    """Add `watch` to the sub-commands of a parser."""
    watch = commands.add_parser(
        "watch",
        help="how far a run is, and for whom it waits",
        description="Follow a run until it ends: a table that renews itself on a terminal, else a line for every "
        "change. Exit code 0 where the run finished, 1 where it stopped, 2 where the folder holds no run.",
    )
    watch.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run's folder")
    watch.add_argument("--once", action="store_true", help="print the table as it is now, and end")
    watch.set_defaults(run=_watch)


def _watch(options: argparse.Namespace) -> int:
    if not options.once:
        return _follow(options.folder, Screen().show if sys.stdout.isatty() else Log().show)
    progress = read_progress(options.folder)
    if not progress:
        return _no_run(options.folder)
    print("\n".join(run_table(progress, read_history(options.folder), time.time())))
    return ENDS.get(progress["phase"], 0)


def _follow(folder: Path, show: Show) -> int:
    while progress := read_progress(folder):
        show(progress, read_history(folder))
        if progress["phase"] in ENDS:
            return ENDS[progress["phase"]]
        time.sleep(POLL_S)
    return _no_run(folder)


class Screen:
    """A table that is drawn over the one before."""

    def __init__(self) -> None:
        self._drawn = 0

    def show(self, progress: Progress, history: Sequence[Record]) -> None:
        width = shutil.get_terminal_size().columns
        table = run_table(progress, history, time.time())
        lines = [part for line in table for part in textwrap.wrap(line, width - 1, subsequent_indent="    ")]
        # Up to where the last table began, and clear from there.
        print((f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "") + "\n".join(lines), flush=True)
        self._drawn = len(lines)


class Log:
    """A line for every change, and for whom a long wait is, now and then."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._silent = False
        self._said = time.monotonic()

    def show(self, progress: Progress, history: Sequence[Record]) -> None:
        for line in changes(progress, history):
            if line not in self._told:
                self._told.add(line)
                self._print(line)
        silent = silence(progress, time.time())
        if silent and not self._silent:
            self._print(f"{progress['method']}: round {progress['round']}: {silent}")
        line = "" if silent else wait_line(progress, time.time() - progress.get("since", 0.0))
        if line and time.monotonic() - self._said >= LINE_EVERY_S:
            self._print(f"{progress['method']}: {line}")
        self._silent = bool(silent)

    def _print(self, line: str) -> None:
        self._said = time.monotonic()
        print(line, flush=True)


def changes(progress: Progress, history: Sequence[Record]) -> Iterator[str]:
    """Everything worth a line by now, oldest first."""
    method = progress["method"]
    for record in history:
        if record["method"] == method:
            reasons = refusals(record) | record.get("failed", {})
            absent = "".join(f"; {site}: {reason}" for site, reason in sorted(reasons.items()))
            loss = "none" if record["loss"] is None else f"{record['loss']:.3f}"
            stage = f" ({record['stage']})" if record.get("stage") else ""
            done = f"{method}: round {record['round']}{stage} done in {record['seconds']:.1f} s"
            yield f"{done}: loss {loss}, {len(record['sites'])} sites{absent}"
    if progress["phase"] in WAITS:
        yield f"{method}: round {progress['round']}: {progress['phase']}, waiting for {_named(progress)}"
        for site, answer in progress["answered"].items():
            said = f": {answer['reason']}" if answer["reason"] else ""
            yield f"{method}: round {progress['round']}: {site} answered after {answer['seconds']:.1f} s{said}"
    else:
        yield f"{method}: {progress['phase']}" + (f": {progress['reason']}" if progress.get("reason") else "")


def _named(progress: Progress) -> str:
    """Everyone who was asked: the line stays the same while they answer."""
    return ", ".join(sorted([*progress["waiting_for"], *progress["answered"]])) or "sites to connect"


def _no_run(folder: Path) -> int:
    print(f"{folder} holds no {PROGRESS}: give the folder of a run that has begun", file=sys.stderr)
    return 2
