"""What does a mask look like on its scan? One axial CT slice with the contours of truth and prediction; of a lesion
also how far the scan departs from health there.

Axes: `X Y Z` voxels in RAS+ order. Display is radiological: the patient's right on the left, front on top.
"""

from __future__ import annotations

import io
import itertools
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
ANOMALY_COLOURS, ANOMALY_MOST_SD = (
    "magma",
    6.0,
)  # the residual map: colours, and the standard deviations of the last one
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
        anomaly: (X, Y, Z), departure from healthy tissue in standard deviations; None where it was not looked for.
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
    anomaly: NDArray[Any] | None = None

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


def draw_overlay(overlay: Overlay) -> bytes:
    """PNG of the whole slice, beside it the surroundings of the masks, and beside these the anomaly map where given.

    Truth is a wide line, prediction a narrow one drawn over it, so that both stay visible where they agree.

    Raises:
        ValueError: the shapes differ.
    """
    image, spacing_mm = np.asarray(overlay.image, float), overlay.spacing_mm
    truth, prediction = np.asarray(overlay.truth, bool), np.asarray(overlay.prediction, bool)
    maps = [image, truth, prediction] + ([] if overlay.anomaly is None else [np.asarray(overlay.anomaly, float)])
    if image.ndim != 3 or len({volume.shape for volume in maps}) > 1:
        raise ValueError(
            f"image, truth, prediction and anomaly want one (X, Y, Z) shape, found {[m.shape for m in maps]}"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    z = widest_slice(truth, prediction)
    scan, true, found, *anomaly = (radiological(volume[:, :, z]) for volume in maps)
    height_mm, width_mm = scan.shape[0] * spacing_mm[1], scan.shape[1] * spacing_mm[0]
    extent = (0.0, width_mm, height_mm, 0.0)
    left, right, top, bottom = _surroundings(true | found, spacing_mm)

    floor, first = 0.45 / 2.75, 2.3 * width_mm / height_mm
    panels = np.cumsum([0.0, first, 2.3] + [2.3] * len(anomaly))
    figure = Figure(figsize=(panels[-1], 2.75), dpi=140, facecolor=_PAPER)
    whole, *closer = (
        figure.add_axes((start / panels[-1], floor, (end - start) / panels[-1], 1 - floor))
        for start, end in itertools.pairwise(panels)
    )
    for axes, shown, width in (
        (whole, scan, 0.8),
        (closer[0], scan, 1.3),
        *zip(closer[1:], anomaly, (1.3,) * len(anomaly), strict=True),
    ):
        colours = ("gray", 1.0) if shown is scan else (ANOMALY_COLOURS, ANOMALY_MOST_SD)
        axes.imshow(shown, cmap=colours[0], vmin=0, vmax=colours[1], extent=extent, interpolation="bicubic")
        x = (np.arange(scan.shape[1]) + 0.5) * spacing_mm[0]
        y = (np.arange(scan.shape[0]) + 0.5) * spacing_mm[1]
        for mask, colour, scale in ((true, TRUTH_COLOUR, 2.2), (found, PREDICTION_COLOUR, 1.0)):
            if mask.any():
                axes.contour(x, y, mask.astype(float), [0.5], colors=[colour], linewidths=[width * scale])
        axes.set_axis_off()
        axes.set(xlim=(left, right), ylim=(bottom, top))
    whole.set(xlim=(0, width_mm), ylim=(height_mm, 0))
    whole.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=_INK, lw=0.6, ls=(0, (4, 4))))
    for mark, where in (("R", 0.015), ("L", 0.985)):
        side = "left" if mark == "R" else "right"
        whole.text(where, 0.5, mark, transform=whole.transAxes, color=_INK, fontsize=9, ha=side, va="center")
    if not found.any():
        _remark(closer[0], "nothing predicted in this slice", PREDICTION_COLOUR)
    for axes in closer[1:]:
        _remark(axes, f"departure from health, 0 to {ANOMALY_MOST_SD:g} sd", _INK)
    _caption(figure, overlay.title, f"axial slice {z + 1} of {image.shape[2]}", panels[-1])
    FigureCanvasAgg(figure)
    return _small_png(figure)


def _remark(axes: Any, text: str, colour: str) -> None:
    axes.text(0.5, 0.03, text, transform=axes.transAxes, color=colour, fontsize=7.5, ha="center",
              bbox={"facecolor": _PAPER, "linewidth": 0})  # fmt: skip


def _caption(figure: Any, title: str, place: str, width: float) -> None:
    figure.text(0.06 / width, 0.09, title, color=_INK, fontsize=8, va="bottom")
    figure.text(0.06 / width, 0.022, "truth (wide)", color=TRUTH_COLOUR, fontsize=7.5, va="bottom")
    figure.text(0.95 / width, 0.022, "prediction (narrow)", color=PREDICTION_COLOUR, fontsize=7.5, va="bottom")
    figure.text(1 - 0.06 / width, 0.022, place, color=_INK, fontsize=7.5, ha="right", va="bottom")


def save_overlays(folder: str | Path, items: Iterable[Overlay]) -> list[dict[str, Any]]:
    """Write one PNG an item and `overlays.json` beside them; file names carry site and class, never a case.

    Returns:
        What `overlays.json` holds: {"file", "method", "site", "class", "status", "dice", "anomaly"} per picture.
    """
    folder = Path(folder)
    entries: list[dict[str, Any]] = []
    for item in items:
        stem = re.sub(r"\W+", "-", f"{item.status} {item.site} {item.class_name} {item.method}".lower()).strip("-")
        png = draw_overlay(item)
        entry: dict[str, Any] = {
            "file": f"{len(entries):02d}-{stem}.png", "method": item.method, "site": item.site,
            "class": item.class_name, "status": item.status,
            "dice": None if item.dice is None or not np.isfinite(item.dice) else float(item.dice),
            "anomaly": item.anomaly is not None,
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
