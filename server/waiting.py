"""For whom is the coordinator waiting? Said in a line now and then, and kept in `progress.json` for whoever looks."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRESS = "progress.json"
HISTORY = "history.jsonl"  # a line for every round that is done; beside it in the run folder
WAITS = ("connecting", "enrolling", "training")  # phases that sites are awaited in
LINE_EVERY_S = 30.0  # a line this often while sites are awaited
SIGN_EVERY_S = 5.0  # a sign of life this often in the file

log = logging.getLogger(__name__)


def read_progress(run: Path) -> dict[str, Any]:
    """What `progress.json` of a run folder says; empty where there is none."""
    try:
        content = json.loads((run / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def wait_line(progress: Mapping[str, Any], elapsed_s: float) -> str:
    """For whom a run waits, as `progress.json` tells; empty where it waits for nobody."""
    if progress.get("phase") not in WAITS:
        return ""
    sites = ", ".join(progress["waiting_for"]) or "sites to connect"
    return f"round {progress['round']}: waiting for {sites} ({elapsed_s:.0f} s of {progress['deadline_s']:g} s)"


def mark_finished(run: Path) -> None:
    """Say in `progress.json` that everything is done that follows the rounds."""
    _write(run / PROGRESS, read_progress(run) | {"phase": "finished"})


def mark_stopped(run: Path, reason: str) -> str:
    """Say in `progress.json` of a run whose process is gone that it has stopped; why, as it told itself if it could."""
    progress = read_progress(run)
    if progress.get("phase") == "stopped" and progress.get("reason"):
        return f"{progress['reason']}"
    if progress and progress["phase"] != "finished":
        _write(run / PROGRESS, progress | {"phase": "stopped", "reason": reason})
    return reason


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{PROGRESS}.part")
    # Only to be looked at: not worth a sync, and a full disk must not stop a round here.
    with suppress(OSError):
        part.write_text(json.dumps(content | {"alive": time.time()}), encoding="utf-8")
        os.replace(part, path)


class Waiting:
    """The sites that a run waits for now. Times in the file are seconds since 1970.

    An error that leaves the `with` block is the reason why the run stopped.
    """

    def __init__(
        self, folder: Path | None = None, method: str = "federated", say: Callable[[str], object] = log.info
    ) -> None:
        """Say it to `say`, and keep it in a run folder if one is given."""
        self._path, self._say = (folder / PROGRESS if folder else None), say
        self._content: dict[str, Any] = {"method": method, "phase": "enrolling", "round": 0, "rounds": 0, "stage": ""}
        self._started = self._said = self._signed = time.monotonic()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if kind is not None:
            self.end("stopped", f"{error}" or kind.__name__)

    def begin(
        self, phase: str, round: int, rounds: int, sites: Iterable[str], deadline_s: float, stage: str = ""
    ) -> None:
        """A wait begins, for these sites and no longer than the deadline; in a stage of training, once that begins."""
        self._started = self._said = time.monotonic()
        self._content |= {"phase": phase, "round": round, "rounds": rounds, "stage": stage, "since": time.time()}
        self._content |= {"deadline_s": deadline_s, "waiting_for": sorted(sites), "answered": {}, "reason": ""}
        self._write()

    def answered(self, site: str, reason: str = "") -> None:
        """A site has answered; `reason` where it gave no update."""
        seconds = round(time.monotonic() - self._started, 3)
        self._content["answered"][site] = {"seconds": seconds, "reason": reason}
        self._content["waiting_for"] = [other for other in self._content["waiting_for"] if other != site]
        self._write()

    def seconds(self) -> dict[str, float]:
        """Seconds from the order to the answer, of every site that has answered in this wait."""
        return {site: answer["seconds"] for site, answer in self._content.get("answered", {}).items()}

    def tick(self) -> None:
        """The wait goes on; to be called often."""
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_S:
            self._said = now
            self._say(self.line())
        if now - self._signed >= SIGN_EVERY_S:
            self._write()

    def line(self) -> str:
        """Such as `round 7: waiting for site_b, site_c (41 s of 600 s)`."""
        return wait_line(self._content, time.monotonic() - self._started)

    def end(self, phase: str, reason: str = "") -> None:
        """Nothing is awaited any more: `done` with the rounds, `finished` with the run, or `stopped` for a reason."""
        self._content |= {"phase": phase, "waiting_for": [], "reason": reason}
        self._write()

    def _write(self) -> None:
        self._signed = time.monotonic()
        if self._path is not None:
            _write(self._path, self._content)
