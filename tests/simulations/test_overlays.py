"""Overlays: the right slice, the right way round, both contours visible."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simulations.overlays import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    Overlay,
    draw_overlay,
    radiological,
    save_overlays,
    widest_slice,
)

SHAPE = (40, 32, 12)


def box(x: slice, y: slice, z: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[x, y, z] = True
    return mask


TRUTH = box(slice(24, 34), slice(10, 20), slice(4, 7))
NOTHING = np.zeros(SHAPE, bool)
IMAGE = np.full(SHAPE, 0.4)


def draw(truth: np.ndarray, prediction: np.ndarray, spacing_mm: tuple[float, ...] = (1, 1, 1), **more: Any) -> bytes:
    return draw_overlay(Overlay(IMAGE, truth, prediction, "m", "s", "c", "local", 1.0, spacing_mm, **more))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)


def pixels_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """(rows, columns) bool above the caption, where the colour stands."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture - rgb).max(-1) < 25)[: int(picture.shape[0] * 0.8)]


def test_slice_has_most_truth_then_most_prediction_then_the_middle() -> None:
    truth = TRUTH | box(slice(20, 36), slice(8, 22), slice(6, 7))
    assert widest_slice(truth, NOTHING) == 6
    assert widest_slice(NOTHING, box(slice(0, 3), slice(0, 3), slice(2, 3))) == 2
    assert widest_slice(NOTHING, NOTHING) == 6


def test_patients_right_is_on_the_left_and_front_on_top() -> None:
    plane = np.zeros(SHAPE[:2])
    plane[-1, -1] = 1  # RAS+: the last voxel is right, front
    shown = radiological(plane)
    assert shown.shape == (SHAPE[1], SHAPE[0])
    assert shown[0, 0] == 1


def test_contours_stand_on_the_patients_right() -> None:
    picture = pixels(draw(TRUTH, TRUTH))
    whole = pixels_of(picture, TRUTH_COLOUR)[:, : int(picture.shape[1] * 0.5)]
    columns = np.nonzero(whole.any(0))[0]
    assert columns.size
    assert columns.max() < whole.shape[1] * 0.6


def test_both_contours_stay_visible_where_they_agree() -> None:
    picture = pixels(draw(TRUTH, TRUTH))
    assert pixels_of(picture, TRUTH_COLOUR).sum() > 50
    assert pixels_of(picture, PREDICTION_COLOUR).sum() > 50


def test_a_missing_prediction_draws_no_contour_but_says_so() -> None:
    without = pixels_of(pixels(draw(TRUTH, NOTHING)), PREDICTION_COLOUR)
    with_one = pixels_of(pixels(draw(TRUTH, TRUTH)), PREDICTION_COLOUR)
    assert without[: int(len(without) * 0.85)].sum() < 0.2 * with_one.sum()
    assert draw(NOTHING, NOTHING).startswith(b"\x89PNG")


def test_anisotropic_voxels_keep_their_shape_in_mm() -> None:
    narrow = Image.open(io.BytesIO(draw(TRUTH, TRUTH, (1.0, 2.0, 1.0)))).size
    wide = Image.open(io.BytesIO(draw(TRUTH, TRUTH, (2.0, 1.0, 1.0)))).size
    assert wide[0] > 1.8 * narrow[0]
    assert wide[1] == narrow[1]


def test_anomaly_map_stands_beside_the_masks_and_is_bright_where_the_scan_is_odd() -> None:
    plain, odd = pixels(draw(TRUTH, TRUTH)), pixels(draw(TRUTH, TRUTH, anomaly=6.0 * TRUTH))
    healthy = pixels(draw(TRUTH, TRUTH, anomaly=np.zeros(SHAPE)))
    assert odd.shape[1] > plain.shape[1] * 1.4
    assert odd.shape == healthy.shape
    beside = slice(plain.shape[1], None)
    shown = slice(0, int(odd.shape[0] * 0.8))
    bright = (odd[shown, beside].min(-1) > 150).mean(), (healthy[shown, beside].min(-1) > 150).mean()
    assert bright[0] > 0.05 > 10 * bright[1]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(40, 32, 12\).*\(40, 32, 11\)"):
        draw(TRUTH, TRUTH[..., 1:])
    with pytest.raises(ValueError, match=r"\(40, 32, 12\).*\(40, 32, 11\)"):
        draw(TRUTH, TRUTH, anomaly=np.zeros(SHAPE)[..., 1:])


def test_saved_pictures_are_listed_and_carry_no_case(tmp_path: Path) -> None:
    item = Overlay(IMAGE, TRUTH, TRUTH, "federated", "St. Mary/1", "liver tumor", "foreign", float("nan"))
    entries = save_overlays(tmp_path, [item, item])
    assert json.loads((tmp_path / "overlays.json").read_text()) == entries
    assert entries[0] == {"file": "00-foreign-st-mary-1-liver-tumor-federated.png", "method": "federated",
                          "site": "St. Mary/1", "class": "liver tumor", "status": "foreign", "dice": None,
                          "anomaly": False}  # fmt: skip
    assert len({entry["file"] for entry in entries}) == 2
    assert all((tmp_path / entry["file"]).stat().st_size > 1000 for entry in entries)
