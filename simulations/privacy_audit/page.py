"""How does a privacy officer read an audit? One page, `audit.html`, made from the folder alone; no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulations.privacy_audit.inversion import Inversion
from simulations.privacy_audit.results import PrivacyAudit, read_audit
from simulations.results import write_atomically

_SCALE = 12  # pixels of a voxel
_WINDOW = 2.5  # standard deviations from the mean grey to black or white


def save_pictures(folder: Path, inversions: Sequence[Inversion]) -> list[dict[str, Any]]:
    """Write the middle slice of the scan and of what each update gave away; what `audit.json` holds of them."""
    items = []
    for inversion in inversions:
        claim = None if inversion.privacy.mode == "none" else inversion.privacy.epsilon
        update = "unprotected" if claim is None else "protected"
        names = {"truth": "scan.png", "picture": f"recovered-{update}.png"}
        for name, volume in zip(names.values(), (inversion.truth, inversion.recovered), strict=True):
            write_atomically(folder / name, _png(volume))
        found = {"similarity": inversion.similarity, "likeness": inversion.likeness}
        items.append({"kind": update, "claimed_epsilon": claim, **found, **names})
    return items


def write_page(folder: str | Path) -> Path:
    """Write `audit.html` and give its path.

    Raises:
        AuditError: the folder lacks the audit.
    """
    folder = Path(folder)
    path = folder / "audit.html"
    write_atomically(path, render(read_audit(folder), folder))
    return path


def render(audit: PrivacyAudit, folder: Path) -> str:
    """The page as one HTML text, pictures within."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(picture=lambda name: _embedded(folder / Path(name).name))
    claims = list(dict.fromkeys(row.claimed_epsilon for row in audit.rows))
    best = {claim: audit.best(claim) for claim in claims}
    return environment.get_template("privacy_audit.html.j2").render(
        audit=audit, facts=audit.facts, claims=claims, best=best
    )


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _png(volume: np.ndarray) -> bytes:
    from PIL import Image

    # Each in its own window, as scans are looked at: an update says little about brightness and contrast.
    window = (volume - volume.mean()) / (2 * _WINDOW * volume.std()) + 0.5
    middle = np.clip(window[:, :, volume.shape[2] // 2], 0, 1)
    pixels = np.kron((255 * middle.T[::-1]).astype(np.uint8), np.ones((_SCALE, _SCALE), np.uint8))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="png", optimize=True)
    return out.getvalue()
