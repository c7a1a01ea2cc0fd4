"""What happened here, in an order that nobody can change unnoticed: an append-only log, its records chained by hash.

Each line is one record and holds the hash of the record before it; a second file, the head, holds the number and the
hash of the last one. Found out this way: a record that was edited, deleted, inserted, doubled or moved, and records
cut off at the end while the head was left alone. Not found out this way: somebody who may write both files and makes
them anew from some record on, or who adds one. Against that the head is told to the other side, which puts it in its
own log at every enrolment, and may be noted anywhere else: `verify` takes such a head and looks for its record.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dsm_core.durable import replace_file, sync_folder
from strategies.audit_records import AuditError, Head, read_record, write_record
from strategies.audit_verdict import Verdict, examine

__all__ = ["AuditError", "AuditLog", "Head", "Verdict"]

_TAIL_BYTES = 64 << 10


class AuditLog:
    """One log. Several processes may write to it; each record is on the disk when `record` returns."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        """Name the file; it is made with the first record.

        Args:
            timeout_s: how long to wait for another process that writes.
        """
        self.path, self._timeout_s = path, timeout_s

    def record(self, event: str, **facts: Any) -> Head:
        """Append a record; returns the new end of the log.

        Args:
            facts: JSON-able.

        Raises:
            AuditError: the disk is full, another writer holds the log for too long, or the log is damaged.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                head, end = self._end()
                size = self.path.stat().st_size if self.path.exists() else 0
                if size > end:  # the rest of a line that a crash cut off
                    os.truncate(self.path, end)
                    head = self._append(head, "repaired", {"dropped_bytes": size - end})
                return self._append(head, event, facts)
        except OSError as error:
            raise AuditError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def head(self) -> Head:
        """The end of the log.

        Raises:
            AuditError: the log is damaged, or another writer holds it for too long.
        """
        if not self.path.exists() and not self._head_path.exists():
            return Head()
        with self._locked():  # or a head read before, and a log read after, two records would look like tampering
            return self._end()[0]

    def verify(self, expected: Head | None = None) -> Verdict:
        """Every sign that the log is not as it was written.

        Args:
            expected: an end of this log that was noted elsewhere, now or earlier.

        Raises:
            AuditError: there is no log here, or another writer holds it for too long.
        """
        if not self.path.exists() and not self._head_path.exists():
            raise AuditError(f"there is no audit log at {self.path}")
        # A copy on a disk that cannot be written has no other writer, and takes no lock.
        lock = self._locked() if os.access(self.path.parent, os.W_OK) else nullcontext()
        try:
            with lock:
                content = self.path.read_bytes() if self.path.exists() else b""
                stated = self._stated()
        except OSError as error:
            raise AuditError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return examine(content, stated, expected)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(f"{self.path}.lock", timeout=self._timeout_s, mode=0o600)
        try:
            with lock:
                yield
        except Timeout as error:
            raise AuditError(f"{self.path}: another process held the log for {self._timeout_s:g} s") from error

    @property
    def _head_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.head")

    def _stated(self) -> Head | None:
        try:
            return Head.parse(self._head_path.read_text())
        except FileNotFoundError:
            return None

    def _end(self) -> tuple[Head, int]:
        """The last whole record, and the number of bytes up to its end."""
        stated = self._stated() or Head()
        line, end = _last_line(self.path)
        record = read_record(line) if line else None
        found = Head() if not line else Head(record["number"], record["hash"]) if record else None
        # A crash between the two writes leaves the head one record behind.
        follows = record is not None and Head(record["number"] - 1, record["previous"]) == stated
        if found is None or (found != stated and not follows):
            raise AuditError(
                f"{self.path} is damaged: its last record is not the one that {self._head_path.name} states; "
                "`audit verify` says what is wrong. Keep both files, and go on in a new one"
            )
        return found, end

    def _append(self, head: Head, event: str, facts: dict[str, Any]) -> Head:
        content = {
            "number": head.records + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "facts": facts,
            "previous": head.hash,
        }
        line, digest = write_record(content)
        line, after = line + b"\n", Head(head.records + 1, digest)
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(descriptor).st_size
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                if file.write(line) != len(line):
                    raise OSError(0, "the disk took a part of the record only")
                os.fsync(file.fileno())
            if is_new:
                sync_folder(self.path.parent)
            replace_file(self._head_path, f"{after}\n".encode())
        except OSError:
            # Of a record that its head does not follow, the next one would make a log that looks damaged.
            if self._stated() != after:
                os.truncate(self.path, size)
            raise
        return after


def _last_line(path: Path) -> tuple[bytes, int]:
    """The last line that has an end, without it, and the number of bytes up to there."""
    if not path.exists():
        return b"", 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        taken = 0
        while taken < size:
            taken = min(size, 2 * taken or _TAIL_BYTES)
            file.seek(size - taken)
            tail = file.read(taken)
            end = tail.rfind(b"\n")
            start = tail.rfind(b"\n", 0, end) if end >= 0 else -1
            if start >= 0 or taken == size:
                return tail[start + 1 : end] if end >= 0 else b"", size - taken + end + 1
    return b"", 0
