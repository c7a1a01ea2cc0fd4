"""How far is a run? Its rounds, and what it waits for, as its folder tells: names of sites, no more."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from server.admission import Refusal
from strategies.proto.consortium_pb2 import Progress

HISTORY = "history.jsonl"  # in a run's folder: a line a round
WAIT = "progress.json"  # in a run's folder: what it waits for now, with a sign of life every few seconds
OVER = ("finished", "stopped")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_POLL_S = 0.3
_SILENT_S = 30.0


def find_run(runs: Path, name: str) -> Path:
    """The folder of a run.

    Raises:
        Refusal: the name is none of a run, or there is no such run.
    """
    if not _RUN.fullmatch(name):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{name[:40]!r} is no name of a run: letters, digits, . _ -")
    if not (runs / name).is_dir():
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"there is no run {name!r} here")
    return runs / name


def follow(
    folder: Path, site: str, after_round: int, lease_s: float, goes_on: Callable[[], bool]
) -> Iterator[Progress]:
    """Rounds after one that is known, each as soon as it is done, and what the run waits for when that changes.

    Ends when the run is over, when `lease_s` seconds have passed, or when `goes_on` says no. A history that was
    written anew, as by a resumed run, is read from its beginning; a round that was told is not told again.

    Args:
        site: the one that asks; of failures it learns its own reason, of the other sites only the names.
    """
    history, seen, told = folder / HISTORY, None, None
    deadline = time.monotonic() + lease_s
    while goes_on():
        now = read_wait(folder)  # before the history, whose last line is written before the run is over
        if (stamp := _stamp(history)) != seen:
            seen = stamp
            for record in read_rounds(history):
                if record["round"] > after_round:
                    after_round = record["round"]
                    yield as_round(record, site)
        if now is not None and now != told:
            told = now
            yield now
            if now.is_over:
                return
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(_POLL_S, left_s))


def read_wait(folder: Path) -> Progress | None:
    """What the run waits for now, as its folder tells; None where it does not."""
    try:
        content = json.loads((folder / WAIT).read_text(encoding="utf-8"))
        phase = f"{content['phase']}"
        return Progress(
            round=content["round"],
            rounds=content["rounds"],
            phase=phase,
            waiting_for=sorted(content.get("waiting_for", [])),
            is_silent=phase not in OVER and time.time() - content["alive"] > _SILENT_S,
            is_over=phase in OVER,
            stage=f"{content.get('stage', '')}",
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_rounds(history: Path) -> list[dict[str, Any]]:
    """Records of the rounds done; a line that is still being written is left for the next look.

    Raises:
        Refusal: a line is damaged.
    """
    try:
        text = history.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            records.append(json.loads(line))
            _ = records[-1]["round"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(grpc.StatusCode.DATA_LOSS, f"line {number} of the run's history is damaged") from error
    return records


def as_round(record: dict[str, Any], site: str) -> Progress:
    """What a site may know of a round that is done."""
    refused, failed = record.get("refused", {}), record.get("failed", {})
    reasons = {**refused, **failed}
    progress = Progress(
        round=record["round"],
        is_done=True,
        sites=sorted(record.get("sites", [])),
        refused=sorted(refused),
        failed=sorted(failed),
        reasons={site: reasons[site]} if site in reasons else {},
        stage=record.get("stage", ""),
    )
    if isinstance(record.get("loss"), float):
        progress.loss = record["loss"]
    if isinstance(record.get("seconds"), float):
        progress.seconds = record["seconds"]
    return progress


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
