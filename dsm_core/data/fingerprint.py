"""How do a site's scans look, in numbers that pool? Sums and one fixed histogram; no value of a single case.

Fingerprints of several sites merge exactly (means, standard deviations) or within one histogram bin (quantiles).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

BIN_HU = 8
LOWEST_HU = -1024
BINS = 512  # up to 3072 HU; values outside fall into the first and last bin


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """NaN where nothing was counted."""
        return self.total / self.count if self.count else math.nan

    @property
    def sd(self) -> float:
        """Population standard deviation; NaN where nothing was counted."""
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2)) if self.count else math.nan

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)


def moments(values: Any) -> Moments:
    """Moments of an array of numbers."""
    values = np.asarray(values, dtype=np.float64)
    return Moments(int(values.size), float(values.sum()), float(np.square(values).sum()))


@dataclass(frozen=True)
class Fingerprint:
    """A site's scans in summary; axes in RAS order.

    Attributes:
        spacing_mm: length of a voxel along each axis, over cases.
        size: voxels along each axis, over cases.
        intensity_hu: over labelled voxels.
        histogram: labelled voxels per bin of `BIN_HU` from `LOWEST_HU`.
    """

    spacing_mm: tuple[Moments, Moments, Moments] = (Moments(), Moments(), Moments())
    size: tuple[Moments, Moments, Moments] = (Moments(), Moments(), Moments())
    intensity_hu: Moments = Moments()
    histogram: tuple[int, ...] = (0,) * BINS

    @property
    def cases(self) -> int:
        """Cases summarised."""
        return self.size[0].count

    def quantile_hu(self, share: float) -> float:
        """HU below which a share of the labelled voxels lies, right within half a bin; NaN where none is labelled."""
        counts = np.cumsum(self.histogram)
        if not counts[-1]:
            return math.nan
        bin_index = int(np.searchsorted(counts, max(share * counts[-1], 1), side="left"))
        return LOWEST_HU + BIN_HU * (bin_index + 0.5)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is its inverse."""
        return {
            "spacing_mm": [list(astuple(m)) for m in self.spacing_mm],
            "size": [list(astuple(m)) for m in self.size],
            "intensity_hu": list(astuple(self.intensity_hu)),
            "histogram": list(self.histogram),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Fingerprint:
        """Raises ValueError where the content is not that of `to_dict`."""
        try:
            if set(content) != {field.name for field in fields(cls)} or len(content["histogram"]) != BINS:
                raise ValueError(f"fields {sorted(content)}")
            spacing, size = (
                tuple(Moments(int(n), float(s), float(q)) for n, s, q in content[key]) for key in ("spacing_mm", "size")
            )
            count, total, squares = content["intensity_hu"]
            if len(spacing) != 3 or len(size) != 3:
                raise ValueError("three axes are wanted")
            intensity = Moments(int(count), float(total), float(squares))
            return cls(spacing, size, intensity, tuple(int(n) for n in content["histogram"]))  # type: ignore[arg-type]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"not a fingerprint ({error}); wants the fields of Fingerprint.to_dict") from None

    def __add__(self, other: Fingerprint) -> Fingerprint:
        spacing = tuple(a + b for a, b in zip(self.spacing_mm, other.spacing_mm, strict=True))
        size = tuple(a + b for a, b in zip(self.size, other.size, strict=True))
        histogram = tuple(a + b for a, b in zip(self.histogram, other.histogram, strict=True))
        return Fingerprint(spacing, size, self.intensity_hu + other.intensity_hu, histogram)  # type: ignore[arg-type]


def merge(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """The fingerprint of all sites' cases together."""
    return sum(fingerprints, Fingerprint())


def case_fingerprint(spacing_mm: Iterable[float], size: Iterable[int], labelled_hu: np.ndarray) -> Fingerprint:
    """One case as a summand; it stays at the site."""
    bins = np.clip(np.floor((labelled_hu.astype(np.float64) - LOWEST_HU) / BIN_HU), 0, BINS - 1).astype(np.int64)
    x, y, z = (moments([value]) for value in spacing_mm)
    width, depth, height = (moments([value]) for value in size)
    histogram = tuple(int(n) for n in np.bincount(bins.ravel(), minlength=BINS))
    return Fingerprint((x, y, z), (width, depth, height), moments(labelled_hu), histogram)
