"""How does a run survive its process? The last states of a federated run, kept in a folder while the sites train on."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from dsm_core.config import Config
from server.state_file import DamagedState, SavedState, StateError, read_state, write_state

POLL_S = 0.2
KEPT = 2  # a damaged state costs the rounds since the one before it

log = logging.getLogger(__name__)


class StateStore:
    """The states of one federated run, in a folder of their own.

    A state is written by a thread of its own, so a round waits for the disk only where writing takes longer than a
    round. Leaving the `with` block writes the last state, also after an error.
    """

    def __init__(self, folder: Path, config: Config, patience_s: float = 0.0) -> None:
        """Name the folder.

        Args:
            patience_s: how long another process may still work on this run, as one that was told to end.
        """
        self.folder, self._config, self._patience_s = folder, config, patience_s
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None
        self._unwritten: SavedState | None = None

    def __enter__(self) -> StateStore:
        """Raises StateError: another process works on this run."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            deadline = time.monotonic() + self._patience_s
            while not _is_locked(self._lock):
                if time.monotonic() >= deadline:
                    raise BlockingIOError
                time.sleep(POLL_S)
        except BlockingIOError:
            raise StateError(
                f"another process works on the run {self.folder.name!r} in this folder; stop it first"
            ) from None
        except OSError as error:
            raise StateError(f"no state can be kept in the run folder ({error.strerror})") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._await_writer()
            if self._unwritten is not None:
                self._write(self._unwritten)
        except StateError as error:
            if kind is None:
                raise
            log.error("%s", error)  # the error that ended the run is the one to be raised
        finally:
            self._writer.shutdown()
            self._lock.close()

    def keep(self, saved: SavedState) -> None:
        """Take over the state after a round; it is written every `server.save_every` rounds and at the end.

        Raises:
            StateError: an earlier state could not be written.
        """
        self._unwritten = saved
        if saved.state.round % self._config.server.save_every == 0:
            self._await_writer()
            self._writing, self._unwritten = self._writer.submit(self._write, saved), None

    def latest(self) -> SavedState | None:
        """The newest state that is whole; None where none was written yet.

        Raises:
            StateError: every state is damaged, or the newest belongs to another configuration.
        """
        damaged: list[str] = []
        for path in sorted(self.folder.glob("round-*.json"), reverse=True):
            try:
                saved = read_state(path, self._config)
            except DamagedState as fault:
                damaged.append(f"{fault}")
                continue
            if damaged:
                log.warning("damaged, and left out: %s; the run goes on from %s", "; ".join(damaged), path.stem)
            return saved
        if damaged:
            raise StateError(
                f"no state of the run {self.folder.name!r} can be read: {'; '.join(damaged)}; bring its state folder "
                "back from a copy, or begin the run anew"
            )
        return None

    def _await_writer(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, saved: SavedState) -> None:
        write_state(self.folder, saved, self._config)
        # A later state than this one is what a run left that went on from an earlier one: damaged, or of another past.
        names = sorted(path.stem for path in self.folder.glob("round-*.json"))
        kept = set([name for name in names if name <= f"round-{saved.state.round:06d}"][-KEPT:])
        stale = [path for path in self.folder.glob("round-*") if path.stem not in kept]
        for path in [*stale, *self.folder.glob(".*.partial")]:
            path.unlink(missing_ok=True)


def _is_locked(file: TextIO) -> bool:
    """True once this process holds the file; the hold of a killed process is gone with it."""
    if os.name != "posix":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
