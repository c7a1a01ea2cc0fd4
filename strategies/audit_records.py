"""What is one record of an audit log? Its line, its hash, and the place that it gives the next one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

_NOTHING = hashlib.sha256(b"fed-dsm audit log 1").hexdigest()  # what the first record follows
_FIELDS = ("number", "time", "event", "facts", "previous")


class AuditError(RuntimeError):
    """The log cannot be written, or is damaged; what should have been recorded must not happen."""

    @property
    def cause(self) -> str:
        """What the system said, such as `No space left on device`; names no file. Empty where it said nothing."""
        return getattr(self.__cause__, "strerror", None) or ""


@dataclass(frozen=True)
class Head:
    """The end of a log."""

    records: int = 0
    hash: str = _NOTHING

    def __str__(self) -> str:
        return f"{self.records}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """The head in `NUMBER:HASH`, as `str` writes it.

        Raises:
            AuditError: the text is none.
        """
        number, _, digest = text.strip().partition(":")
        if not number.isdigit() or len(digest) != len(_NOTHING) or set(digest) - set("0123456789abcdef"):
            raise AuditError(f"found {text!r} as the end of a log, wanted NUMBER:HASH as `audit verify` prints it")
        return cls(int(number), digest)


def write_record(content: dict[str, Any]) -> tuple[bytes, str]:
    """The line of a record without its end, and the record's hash.

    Raises:
        ValueError: facts that JSON does not know, such as NaN.
    """
    digest = _digest(content)
    return _canonical({**content, "hash": digest}), digest


def read_record(line: bytes) -> dict[str, Any] | None:
    """A record whose hash is right; None for anything else, such as an equal record in other spelling."""
    try:
        record = json.loads(line)
        content = {key: record[key] for key in _FIELDS}
        is_own = record["hash"] == _digest(content) and line == _canonical({**content, "hash": record["hash"]})
        return record if is_own and type(record["number"]) is int else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()
