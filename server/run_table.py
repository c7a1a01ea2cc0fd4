"""How does a run stand? A line about the run and a row a site, from its folder; nobody is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.waiting import HISTORY, WAITS, read_progress

SILENT_S = 60.0  # a living run writes every few seconds

Progress = Mapping[str, Any]
Record = Mapping[str, Any]


@dataclass
class SiteRow:
    """What a site did so far, in rounds, and what it does now."""

    answered: int = 0
    late: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float | None = None
    now: str = ""


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


def run_lines(runs: Path, now: float) -> list[str]:
    """A line for the run that was heard of last, and for every other one that has not finished, newest first."""
    known = [(progress, folder) for folder in runs.glob("*") if (progress := read_progress(folder))]
    known.sort(key=lambda pair: pair[0].get("alive", 0.0), reverse=True)
    lines = []
    for place, (progress, folder) in enumerate(known):
        if place and progress["phase"] == "finished":
            continue
        awaited = ", ".join(progress.get("waiting_for", ()))
        records = [record for record in read_history(folder) if record["method"] == progress["method"]]
        lines.append(f"run {folder.name}: {headline(progress, records, now)}" + (awaited and f"; awaited: {awaited}"))
    return lines


def headline(progress: Progress, records: Sequence[Record], now: float) -> str:
    """Such as `federated: round 7 of 130 (organs), training (41 s of 600 s), loss 0.812`."""
    phase, stage = progress["phase"], progress.get("stage")
    parts = [f"round {progress['round']} of {progress['rounds']}" + f" ({stage})" * bool(stage), phase]
    if phase in WAITS and "since" in progress:
        parts[-1] += f" ({now - progress['since']:.0f} s of {progress['deadline_s']:g} s)"
    if records and records[-1].get("loss") is not None:
        parts.append(f"loss {records[-1]['loss']:.3f}")
    if progress.get("reason"):
        parts.append(progress["reason"])
    if silent := silence(progress, now):
        parts.append(silent)
    return f"{progress['method']}: {', '.join(parts)}"


def silence(progress: Progress, now: float) -> str:
    """What to think of a run that waits and gives no sign of life; empty where it gives one."""
    if progress["phase"] not in WAITS or (silent_s := now - progress.get("alive", now)) <= SILENT_S:
        return ""
    return (
        f"no sign of life for {silent_s:.0f} s: if its process is gone, go on with `dsm-server start --resume`, or "
        "`dsm-simulate resume=RUN_DIR`"
    )


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
    if progress["phase"] in WAITS:
        for site in progress.get("waiting_for", ()):
            row(site).now = "awaited"
        for site, answer in progress.get("answered", {}).items():
            row(site).seconds = answer["seconds"]
            row(site).now = answer["reason"] or "has answered"
    return rows


def refusals(record: Record) -> dict[str, str]:
    """Sites whose update was refused, with the reason; dsm-simulate lists failures among them."""
    refused = record.get("refused", {})
    if isinstance(refused, Mapping):
        return dict(refused)
    return {one["site"]: one["reason"] for one in refused if one["site"] not in record.get("failed", {})}
