"""`dsm-server watch RUN_DIR`: how far is a run, and for whom does it wait? Reads the run folder and asks nobody."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.waiting import HISTORY, PROGRESS, read_progress

POLL_S = 0.5
SILENT_S = 60.0  # a living run writes every few seconds
WAITS = ("connecting", "enrolling", "training")
ENDS = {"finished": 0, "stopped": 1}  # exit code of a run that has ended

Progress = Mapping[str, Any]
Record = Mapping[str, Any]
Show = Callable[[Progress, Sequence[Record]], None]


@dataclass
class SiteRow:
    """What a site did so far, in rounds, and what it does now."""

    answered: int = 0
    late: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float | None = None
    now: str = ""


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


def read_history(run: Path) -> list[dict[str, Any]]:
    """Every whole line of `history.jsonl`."""
    path = run / HISTORY
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def run_table(progress: Progress, history: Sequence[Record], now: float) -> list[str]:
    """The state of a run in lines: what it does, then a row a site.

    Args:
        now: seconds since 1970.
    """
    records = [record for record in history if record["method"] == progress["method"]]
    rows = [("site", "answered", "late", "refused", "failed", "seconds", "now")]
    for site, row in sorted(site_rows(progress, records).items()):
        counts = (f"{row.answered}", f"{row.late}", f"{row.refused}", f"{row.failed}")
        rows.append((site, *counts, "" if row.seconds is None else f"{row.seconds:.1f}", row.now))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [headline(progress, records, now), *table]


def headline(progress: Progress, records: Sequence[Record], now: float) -> str:
    """Such as `federated: round 7 of 140 (organs), training (41 s of 600 s), loss 0.812`."""
    phase, stage = progress["phase"], progress.get("stage")
    parts = [f"round {progress['round']} of {progress['rounds']}" + f" ({stage})" * bool(stage), phase]
    if phase in WAITS and "since" in progress:
        parts[-1] += f" ({now - progress['since']:.0f} s of {progress['deadline_s']:g} s)"
    if records and records[-1].get("loss") is not None:
        parts.append(f"loss {records[-1]['loss']:.3f}")
    if progress.get("reason"):
        parts.append(progress["reason"])
    if phase in WAITS and (silent_s := now - progress.get("alive", now)) > SILENT_S:
        parts.append(f"no sign of life for {silent_s:.0f} s: if its process is gone, go on with resume=RUN_DIR")
    return f"{progress['method']}: {', '.join(parts)}"


def site_rows(progress: Progress, records: Sequence[Record]) -> dict[str, SiteRow]:
    """A row for every site that was asked in a round done or in the one that runs."""
    rows: dict[str, SiteRow] = {}

    def row(site: str) -> SiteRow:
        return rows.setdefault(site, SiteRow())

    for record in records:
        for site in record["sites"]:
            row(site).answered += 1
            row(site).now = ""
        for site, reason in refusals(record).items():
            row(site).refused += 1
            row(site).now = f"refused in round {record['round']}: {reason}"
        for site, reason in record.get("failed", {}).items():
            row(site).failed += 1
            row(site).now = f"failed in round {record['round']}: {reason}"
        for late in record.get("late", ()):
            row(late["site"]).late += 1
        for site, seconds in record.get("answer_seconds", {}).items():
            row(site).seconds = seconds
    if progress["phase"] == "training":
        for site in progress["waiting_for"]:
            row(site).now = "awaited"
        for site, answer in progress["answered"].items():
            row(site).seconds = answer["seconds"]
            row(site).now = answer["reason"] or "has answered"
    return rows


def refusals(record: Record) -> dict[str, str]:
    """Sites whose update was refused, with the reason; dsm-simulate lists failures among them."""
    refused = record.get("refused", {})
    if isinstance(refused, Mapping):
        return dict(refused)
    return {one["site"]: one["reason"] for one in refused if one["site"] not in record.get("failed", {})}


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
        lines = [line[: width - 1] for line in run_table(progress, history, time.time())]
        # Up to where the last table began, and clear from there.
        print((f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "") + "\n".join(lines), flush=True)
        self._drawn = len(lines)


class Log:
    """A line for every change."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def show(self, progress: Progress, history: Sequence[Record]) -> None:
        for line in changes(progress, history):
            if line not in self._told:
                self._told.add(line)
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
    return ", ".join([*progress["waiting_for"], *progress["answered"]]) or "sites to connect"


def _no_run(folder: Path) -> int:
    print(f"{folder} holds no {PROGRESS}: give the folder of a run that has begun", file=sys.stderr)
    return 2
