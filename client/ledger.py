"""How much of its patients' privacy has this site spent, and may it spend more? A file that only the site writes.

A charge is on disk (fsync) before the update it pays for may leave, so a crash can only count too much, never too
little. Charges of all runs compose: nothing is forgotten when a run ends, when the app is installed anew or when a
server asks for more. Imports neither torch nor Opacus.

It guards against servers and crashes, not against those who may write the site's own disk: an older copy put back is
found only by comparing with a hash noted elsewhere (`dsm-site ledger verify --head`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from client.ledger_lines import START, Charge, History, LedgerFault, read_history, seal

__all__ = ["LEDGER_NAME", "Accountant", "BudgetRefused", "Charge", "History", "Ledger", "LedgerFault"]

LEDGER_NAME = "privacy-ledger.jsonl"
_POLL_S = 0.02


class BudgetRefused(LedgerFault):
    """A charge that would pass the site's ceiling; nothing was written."""


class Accountant(Protocol):
    """Composes charges; see `client.privacy.accounting`."""

    def is_within(self, charges: Sequence[Charge], delta: float, epsilon: float) -> bool:
        """True where all charges together spend at most `epsilon` at `delta`."""


class Ledger:
    """A site's ledger file.

    Args:
        accountant: composes the charges; wanted for `check` and `charge` only.
        lock_timeout_s: how long to wait for another process.
        ceiling: epsilon that the site's settings allow in all, where they say less than the ledger.
        clock: seconds since 1970. Times are for the reader: no budget comes back with time, so a clock that is set
            back does no harm and is written down.
    """

    def __init__(
        self,
        path: Path | str,
        site: str,
        accountant: Accountant | None = None,
        lock_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.time,
        ceiling: float | None = None,
    ) -> None:
        self.path, self.site, self.accountant, self.ceiling = Path(path), site, accountant, ceiling
        self.lock_timeout_s, self._clock = lock_timeout_s, clock

    def create(self, epsilon: float, delta: float) -> None:
        """Begin the ledger with the site's ceiling.

        Raises:
            LedgerFault: there is one already, or the numbers are no ceiling.
        """
        if not (0 < epsilon < math.inf and 0 < delta < 1):
            raise LedgerFault(f"a ceiling wants epsilon above 0 and delta in (0, 1), found {epsilon:g} and {delta:g}")
        opened = {"kind": "opened", "site": self.site, "epsilon": epsilon, "delta": delta}
        line = seal({"index": 0, "previous": START, "time": self._now(), **opened})
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(fresh, "wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, self.path)  # unlike a rename it never replaces a ledger
            _sync_folder(self.path.parent)
        except FileExistsError:
            raise LedgerFault(f"{self.path} exists; a site keeps one ledger, see `dsm-site ledger show`") from None
        except OSError as error:
            raise LedgerFault(f"{self.path} cannot be made ({error.strerror}); name another place") from error
        finally:
            fresh.unlink(missing_ok=True)

    def read(self) -> History:
        """The history, every hash checked.

        Raises:
            LedgerFault: no ledger, a damaged one, another site's, or one that stays locked.
        """
        with self._locked(fcntl.LOCK_SH) as file:
            return self._read(file)

    def check(self, charge: Charge) -> None:
        """Return silently if the charge may be made now.

        Raises:
            BudgetRefused: it would pass the ceiling. LedgerFault: as `read`.
        """
        self._refuse_above_ceiling(self.read(), charge)

    def charge(self, charge: Charge, **note: str | int) -> None:
        """Write a charge; when this returns it is on disk, and the update it pays for may leave.

        Args:
            note: for the reader, such as the round.

        Raises:
            BudgetRefused: it would pass the ceiling. LedgerFault: as `read`, or the disk did not take it.
        """
        with self._locked(fcntl.LOCK_EX) as file:
            history = self._read(file)
            self._refuse_above_ceiling(history, charge)
            self._append(file, history, {"kind": "charge", **asdict(charge), "note": note})

    def set_ceiling(self, epsilon: float) -> None:
        """Write another ceiling; for the site's own command, never for a message.

        Raises:
            LedgerFault: no number above 0, or as `charge`.
        """
        if not 0 < epsilon < math.inf:
            raise LedgerFault(f"a ceiling wants epsilon above 0, found {epsilon:g}")
        with self._locked(fcntl.LOCK_EX) as file:
            self._append(file, self._read(file), {"kind": "ceiling", "epsilon": epsilon})

    def _refuse_above_ceiling(self, history: History, charge: Charge) -> None:
        assert self.accountant is not None
        ceiling = history.epsilon if self.ceiling is None else min(history.epsilon, self.ceiling)
        if not self.accountant.is_within((*history.charges, charge), history.delta, ceiling):
            raise BudgetRefused(
                f"{charge} on top of {len(history.charges)} charges would pass the ceiling epsilon={ceiling:g} "
                f"at delta={history.delta:g}; `dsm-site ledger show` has them"
            )

    def _append(self, file: int, history: History, content: Mapping[str, Any]) -> None:
        try:
            if torn := os.fstat(file).st_size - history.size:
                os.ftruncate(file, history.size)
                history = self._write(file, history, {"kind": "repaired", "dropped_bytes": torn})
            self._write(file, history, content)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, history.size)
            raise LedgerFault(
                f"{self.path} took no new line ({error.strerror}), so nothing leaves; free its disk"
            ) from error

    def _write(self, file: int, history: History, content: Mapping[str, Any]) -> History:
        now, last = self._now(), history.entries[-1]["time"]
        back = {"clock_set_back_from": last} if now < last else {}
        line = seal({"index": len(history.entries), "previous": history.head, "time": now, **content, **back})
        if os.pread(file, 1, history.size - 1) != b"\n":
            line = b"\n" + line
        if os.pwrite(file, line, history.size) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
        entry, size = json.loads(line), history.size + len(line)
        return replace(history, entries=(*history.entries, entry), head=entry["hash"], size=size)

    def _read(self, file: int) -> History:
        try:
            history = read_history(os.pread(file, os.fstat(file).st_size, 0))
        except LedgerFault as fault:
            raise LedgerFault(f"{self.path}: {fault}") from None
        except OSError as error:
            raise LedgerFault(f"{self.path} cannot be read ({error.strerror}); name the ledger's file") from error
        if history.site != self.site:
            raise LedgerFault(
                f"{self.path} is the ledger of site {history.site!r} and this is {self.site!r}; name this site's own"
            )
        return history

    @contextmanager
    def _locked(self, kind: int) -> Iterator[int]:
        deadline = time.monotonic() + self.lock_timeout_s
        try:
            file = os.open(self.path, os.O_RDWR if kind == fcntl.LOCK_EX else os.O_RDONLY)
        except FileNotFoundError:
            raise LedgerFault(f"{self.path} does not exist; make it with `dsm-site ledger create`") from None
        except OSError as error:
            raise LedgerFault(f"{self.path} cannot be opened ({error.strerror}); give this user access") from error
        try:
            while not _takes_lock(file, kind):
                if time.monotonic() > deadline:
                    raise LedgerFault(
                        f"{self.path} was locked by another process for {self.lock_timeout_s:g} s; "
                        f"find it with `fuser` and let one process of the site train at a time"
                    )
                time.sleep(_POLL_S)
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile holds the file open, but not locked
            os.close(file)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")


def _takes_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
