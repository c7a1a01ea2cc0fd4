"""What does a mask look like on its scan? One axial CT slice with the contours of truth and prediction.

Axes: `X Y Z` voxels in RAS+ order. Display is radiological: the patient's right on the left, front on top.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.results import write_atomically

# Okabe and Ito's sky blue and orange: told apart under every common colour-vision deficiency, and on grey CT.
TRUTH_COLOUR, PREDICTION_COLOUR = "#56B4E9", "#E69F00"
_PAPER, _INK = "#0d1117", "#e6edf3"


@dataclass(frozen=True)
class Overlay:
    """One picture: a held-out scan, its truth and what a method predicted.

    Attributes:
        image: (X, Y, Z) float in [0, 1].
        truth, prediction: (X, Y, Z) bool.
        status: local, foreign or unseen, seen from the site.
        dice: of the whole case; None where it is undefined.
        spacing_mm: voxel size along X, Y, Z.
    """

    image: NDArray[Any]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    method: str
    site: str
    class_name: str
    status: str
    dice: float | None
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def title(self) -> str:
        score = "no Dice" if self.dice is None else f"Dice {self.dice:.2f}"
        return f"{self.site}: {self.class_name} ({self.status}, {self.method}), {score}"


def widest_slice(truth: NDArray[Any], prediction: NDArray[Any]) -> int:
    """Z of the slice with most truth, else most prediction, else the middle one."""
    for mask in (truth, prediction):
        area = np.asarray(mask, bool).sum((0, 1))
        if area.any():
            return int(area.argmax())
    return truth.shape[2] // 2


def radiological(slice_xy: NDArray[Any]) -> NDArray[Any]:
    """(X, Y) of an RAS+ volume -> (rows, columns), patient's right on the left, front on top."""
    return slice_xy[::-1, ::-1].T


def draw_overlay(
    image: NDArray[Any],
    truth: NDArray[Any],
    prediction: NDArray[Any],
    title: str,
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> bytes:
    """PNG of the whole slice and, beside it, of the surroundings of the masks.

    Truth is a wide line, prediction a narrow one drawn over it, so that both stay visible where they agree.

    Args:
        image: (X, Y, Z) float in [0, 1].
        truth, prediction: (X, Y, Z) bool.

    Raises:
        ValueError: the three shapes differ.
    """
    image, truth, prediction = np.asarray(image, float), np.asarray(truth, bool), np.asarray(prediction, bool)
    if not image.ndim == 3 or not image.shape == truth.shape == prediction.shape:
        raise ValueError(
            f"image, truth and prediction want one (X, Y, Z) shape, "
            f"found {image.shape}, {truth.shape}, {prediction.shape}"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    z = widest_slice(truth, prediction)
    scan, true, found = (radiological(volume[:, :, z]) for volume in (image, truth, prediction))
    height_mm, width_mm = scan.shape[0] * spacing_mm[1], scan.shape[1] * spacing_mm[0]
    box = _surroundings(true | found, spacing_mm)

    panel_width = 2.3 * width_mm / height_mm
    figure = Figure(figsize=(panel_width + 2.3, 2.75), dpi=140, facecolor=_PAPER)
    edge, floor = panel_width / (panel_width + 2.3), 0.45 / 2.75
    whole, close = figure.add_axes((0, floor, edge, 1 - floor)), figure.add_axes((edge, floor, 1 - edge, 1 - floor))
    for axes, width in ((whole, 0.8), (close, 1.3)):
        extent = (0.0, width_mm, height_mm, 0.0)
        axes.imshow(scan, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bicubic")
        x = (np.arange(scan.shape[1]) + 0.5) * spacing_mm[0]
        y = (np.arange(scan.shape[0]) + 0.5) * spacing_mm[1]
        for mask, colour, scale in ((true, TRUTH_COLOUR, 2.2), (found, PREDICTION_COLOUR, 1.0)):
            if mask.any():
                axes.contour(x, y, mask.astype(float), [0.5], colors=[colour], linewidths=[width * scale])
        axes.set_axis_off()
    whole.set(xlim=(0, width_mm), ylim=(height_mm, 0))
    left, right, top, bottom = box
    close.set(xlim=(left, right), ylim=(bottom, top))
    whole.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=_INK, lw=0.6, ls=(0, (4, 4))))
    for mark, where in (("R", 0.015), ("L", 0.985)):
        side = "left" if mark == "R" else "right"
        whole.text(where, 0.5, mark, transform=whole.transAxes, color=_INK, fontsize=9, ha=side, va="center")
    if not found.any():
        close.text(0.5, 0.03, "nothing predicted in this slice", transform=close.transAxes, color=PREDICTION_COLOUR,
                   fontsize=7.5, ha="center", bbox={"facecolor": _PAPER, "linewidth": 0})  # fmt: skip
    figure.text(0.012, 0.09, title, color=_INK, fontsize=8, va="bottom")
    figure.text(0.012, 0.022, "truth (wide)", color=TRUTH_COLOUR, fontsize=7.5, va="bottom")
    figure.text(0.185, 0.022, "prediction (narrow)", color=PREDICTION_COLOUR, fontsize=7.5, va="bottom")
    figure.text(
        0.988, 0.022, f"axial slice {z + 1} of {image.shape[2]}", color=_INK, fontsize=7.5, ha="right", va="bottom"
    )
    FigureCanvasAgg(figure)
    return _small_png(figure)


def save_overlays(folder: str | Path, items: Iterable[Overlay]) -> list[dict[str, Any]]:
    """Write one PNG an item and `overlays.json` beside them; file names carry site and class, never a case.

    Returns:
        What `overlays.json` holds: {"file", "method", "site", "class", "status", "dice"} per picture.
    """
    folder = Path(folder)
    entries: list[dict[str, Any]] = []
    for item in items:
        stem = re.sub(r"\W+", "-", f"{item.status} {item.site} {item.class_name} {item.method}".lower()).strip("-")
        png = draw_overlay(item.image, item.truth, item.prediction, item.title, item.spacing_mm)
        entry: dict[str, Any] = {
            "file": f"{len(entries):02d}-{stem}.png", "method": item.method, "site": item.site,
            "class": item.class_name, "status": item.status,
            "dice": None if item.dice is None or not np.isfinite(item.dice) else float(item.dice),
        }  # fmt: skip
        write_atomically(folder / entry["file"], png)
        entries.append(entry)
    write_atomically(folder / "overlays.json", json.dumps(entries, indent=1, allow_nan=False) + "\n")
    return entries


def _surroundings(mask: NDArray[Any], spacing_mm: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Square (left, right, top, bottom) in mm around a mask of (rows, columns); the whole slice for an empty mask."""
    height, width = mask.shape[0] * spacing_mm[1], mask.shape[1] * spacing_mm[0]
    rows, columns = (
        np.nonzero(mask) if mask.any() else (np.array([0, mask.shape[0] - 1]), np.array([0, mask.shape[1] - 1]))
    )
    centre_x = (columns.min() + columns.max() + 1) / 2 * spacing_mm[0]
    centre_y = (rows.min() + rows.max() + 1) / 2 * spacing_mm[1]
    extent = max(np.ptp(rows) * spacing_mm[1], np.ptp(columns) * spacing_mm[0])
    half = min(max(1.5 * extent, 60.0), height, width) / 2
    centre_x = min(max(centre_x, half), width - half)
    centre_y = min(max(centre_y, half), height - half)
    return centre_x - half, centre_x + half, centre_y - half, centre_y + half


def _small_png(figure: Any) -> bytes:
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, format="png", facecolor=figure.get_facecolor())
    picture = Image.open(raw).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, format="png", optimize=True)
    return out.getvalue()
