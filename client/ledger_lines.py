"""What does a privacy ledger say, and is it whole? Lines of JSON, each with the hash of the line before."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

START = "0" * 64  # stands before the first line
_KINDS = ("opened", "charge", "ceiling", "repaired")


class LedgerFault(RuntimeError):
    """The ledger cannot be used, so nothing trained privately may leave. For the site's own eyes: it names the file."""


@dataclass(frozen=True)
class Charge:
    """Steps of DP-SGD on the site's patients.

    Attributes:
        sampling_rate: probability that a patient takes part in a step.
        noise_multiplier: standard deviation of the noise over the longest gradient of a patient.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not (0 < self.sampling_rate <= 1 and 0 < self.noise_multiplier < math.inf and self.steps >= 1):
            raise ValueError(f"a charge wants a rate in (0, 1], a positive noise and at least one step, found {self}")


@dataclass(frozen=True)
class History:
    """What a ledger says.

    Attributes:
        epsilon, delta: the site's ceiling for its patients, over all runs.
        charges: every one, oldest first. entries: every line.
        head: hash of the last line. warnings: clocks set back, and lines that were cut off.
        size: bytes of the sound lines; what follows them is the unfinished line of a crash.
    """

    site: str
    epsilon: float
    delta: float
    charges: tuple[Charge, ...]
    entries: tuple[dict[str, Any], ...]
    head: str
    warnings: tuple[str, ...]
    size: int


def seal(entry: Mapping[str, Any]) -> bytes:
    """The line of an entry, its own hash added."""
    return _canonical({**entry, "hash": _hash(entry)}) + b"\n"


def read_history(content: bytes) -> History:
    """The history that a ledger's bytes tell, every hash checked.

    A last line without its end is one that a crash cut off: its charge never took place, since nothing leaves before
    the whole line is on disk.

    Raises:
        LedgerFault: the line that was changed or damaged, without the file's name.
    """
    *lines, tail = content.split(b"\n")
    entries: list[dict[str, Any]] = []
    size = 0
    for line in lines:
        _append(entries, line)
        size += len(line) + 1
    if _holds_whole_object(tail):  # only its end is missing, or the end of a line before it
        _append(entries, tail)
        size += len(tail)
    if not entries:
        raise LedgerFault("it is empty; put back its copy, it is not made anew by itself")
    return _told(entries, size, cut=len(content) - size)


def _append(entries: list[dict[str, Any]], line: bytes) -> None:
    try:
        entry = json.loads(line)
        content = {key: value for key, value in entry.items() if key != "hash"}
        if entry["hash"] != _hash(content):
            raise ValueError("its hash is not that of its content")
        if entry["index"] != len(entries) or entry["previous"] != (entries[-1]["hash"] if entries else START):
            raise ValueError("it does not follow the line before")
        if entry["kind"] not in _KINDS or (entry["kind"] == "opened") != (not entries):
            raise ValueError(f"a line of kind {entry['kind']!r} at this place")
        if entry["kind"] == "charge":
            _charge_of(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error}" if type(error) is ValueError else "no line of a ledger"
        raise LedgerFault(
            f"line {len(entries) + 1}: {reason}; it was changed or damaged. Put back a sound copy that is not older"
        ) from None
    entries.append(entry)


def _holds_whole_object(tail: bytes) -> bool:
    try:
        json.JSONDecoder().raw_decode(tail.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True


def _told(entries: list[dict[str, Any]], size: int, cut: int) -> History:
    opened = entries[0]
    charges, warnings, epsilon = [], [], opened["epsilon"]
    for number, entry in enumerate(entries, start=1):
        if entry["kind"] == "charge":
            charges.append(_charge_of(entry))
        elif entry["kind"] == "ceiling":
            epsilon = entry["epsilon"]
        elif entry["kind"] == "repaired":
            warnings.append(
                f"line {number}: {entry['dropped_bytes']} bytes of a line that a crash cut off were dropped"
            )
        if "clock_set_back_from" in entry:
            warnings.append(f"line {number}: the clock was set back, from {entry['clock_set_back_from']}")
    if cut:
        warnings.append(
            f"line {len(entries) + 1}: {cut} bytes without an end, and so not counted: a crash cut them off before its "
            f"update left, or the file was damaged since; compare the head with one noted elsewhere"
        )
    head = entries[-1]["hash"]
    return History(
        opened["site"], epsilon, opened["delta"], tuple(charges), tuple(entries), head, tuple(warnings), size
    )


def _charge_of(entry: Mapping[str, Any]) -> Charge:
    return Charge(entry["sampling_rate"], entry["noise_multiplier"], entry["steps"])


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(entry)).hexdigest()


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
