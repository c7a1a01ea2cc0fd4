"""What is wrong with a site's data folder: one fault a line, and the error that carries them all.

`Fault.wanted` never holds a file name or a value read from a scan: it is the part of a fault that may leave the site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault of a data folder.

    Attributes:
        file: the file, relative to the folder; stays at the site.
        found: what is there; stays at the site.
        wanted: what should be there, and what to do; carries nothing about a patient.
    """

    file: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.file}: found {self.found}; wanted {self.wanted}"


class DatalistError(ValueError):
    """A data folder cannot be used. `str(error)` may leave the site; `faults` and `details()` stay there."""

    def __init__(self, site: str, faults: Iterable[Fault]) -> None:
        self.site, self.faults = site, tuple(faults)
        wanted = Counter(fault.wanted for fault in self.faults)
        kinds = "; ".join(
            f"wanted {text}" + (f" ({count} times)" if count > 1 else "") for text, count in wanted.items()
        )
        super().__init__(
            f"site {site}: {len(self.faults)} fault(s) in its data folder: {kinds}. "
            "`dsm-site check` at the site names the files"
        )

    def details(self) -> str:
        """Every fault with its file, one a line; for the site's own screen only."""
        return "\n".join(str(fault) for fault in self.faults)
