"""Which updates the server refuses, and why."""

from __future__ import annotations

import numpy as np

from strategies.averaging import CLASS_ROWS, MOMENT, MOMENT_KINDS, Arrays

# With betas .9 and .99 AdamW keeps |m| <= 2.4 sqrt(v) (Cauchy-Schwarz), and so do averages over sites. How large they
# are says nothing: moments have the scale of gradients, which under differential privacy are mostly noise.
_LARGEST_RATIO, _TINY = 10.0, 1e-10


class UpdateRefused(ValueError):
    """An update of one site that must not enter the average."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"{site}: update refused: {reason}")
        self.site, self.reason = site, reason


def validate_update(site: str, arrays: Arrays, reference: Arrays, max_norm: float) -> None:
    """Return silently if the site's tensors may be averaged.

    Args:
        arrays: what the site sent.
        reference: the global tensors that it started from.
        max_norm: largest L2 norm of the change of all parameters that is believed.

    Raises:
        UpdateRefused: missing or unknown tensors, a wrong shape or dtype, NaN or Inf, a norm above `max_norm`, or
            moments that would make a step of any length.
    """
    missing, unknown = sorted(reference.keys() - arrays.keys()), sorted(arrays.keys() - reference.keys())
    if missing or unknown:
        raise UpdateRefused(site, f"tensors missing: {_some(missing)}; tensors nobody asked for: {_some(unknown)}")
    square = 0.0
    for key, wanted in reference.items():
        found = arrays[key]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise UpdateRefused(
                site, f"{key} is {found.dtype}{list(found.shape)}, wanted {wanted.dtype}{list(wanted.shape)}"
            )
        change = found - wanted
        part = float(np.vdot(change, change))
        if not np.isfinite(part) and (broken := np.count_nonzero(~np.isfinite(found))):
            raise UpdateRefused(site, f"{key} holds {broken} values that are NaN or Inf")
        square += 0.0 if MOMENT in key else part
    if not square**0.5 <= max_norm:
        raise UpdateRefused(site, f"norm {square**0.5:.3g} of the update is above server.max_update_norm={max_norm:g}")
    first, second = (f"{MOMENT}{kind}" for kind in MOMENT_KINDS)
    for key in reference:
        if key.endswith(first):
            mean, square_mean = arrays[key], arrays[key.removesuffix(first) + second]
            if not (square_mean >= 0).all() or (np.abs(mean) > _LARGEST_RATIO * np.sqrt(square_mean) + _TINY).any():
                raise UpdateRefused(site, f"{key} and its {second} are moments that no AdamW makes")


def validate_reference(arrays: Arrays, class_count: int) -> None:
    """Return silently if these global tensors can be averaged at all.

    Raises:
        ValueError: a tensor that is not floating, or class rows whose first axis is not the classes.
    """
    whole = [f"{key} ({array.dtype})" for key, array in arrays.items() if not np.issubdtype(array.dtype, np.floating)]
    if whole:
        raise ValueError(f"only floating tensors can be averaged, found {_some(whole)}; do not send the others")
    for key, array in arrays.items():
        if key.startswith(CLASS_ROWS) and array.shape[:1] != (class_count,):
            raise ValueError(f"{key} wants {class_count} rows, one a class; found shape {list(array.shape)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
