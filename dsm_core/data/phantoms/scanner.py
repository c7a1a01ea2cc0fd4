"""How one site's scanner records a patient: spacing and slice profile, table, kernel, noise and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from dsm_core.data.phantoms.canvas import AIR_HU, Canvas
from dsm_core.data.phantoms.shapes import Array, apply_weights

RANGE_HU = (-1024, 3071)
TABLE_GAP_MM = 4.0


@dataclass(frozen=True)
class Scanner:
    """One site's scanner.

    Attributes:
        spacing_mm: voxel size along x, y, z.
        noise_hu: standard deviation of the noise in the middle of the patient, about.
        sharpness: above 0 a sharp kernel (edges overshoot, fine noise), below 0 a soft one (blur, coarse noise).
        shift_hu, gain: calibration; recorded = gain * (HU + 1000) - 1000 + shift.
    """

    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 4.0)
    noise_hu: float = 10.0
    sharpness: float = 0.0
    shift_hu: float = 0.0
    gain: float = 1.0


def record(canvas: Canvas, scanner: Scanner, rng: np.random.Generator) -> tuple[Array, Array]:
    """The scan, (X', Y', Z') float32 HU, and the truth in its grid, uint8: 0 or 1 + the index of the class."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * step
        for axis, step in zip(canvas.space.axes, scanner.spacing_mm, strict=True)
        for n in [max(1, int((axis[-1] - axis[0]) / step) + 1)]
    ]
    pairs = zip(axes, canvas.space.axes, scanner.spacing_mm, strict=True)
    weights = [_slice_profile(new, old, step) for new, old, step in pairs]
    image = apply_weights(_with_table(canvas), weights)
    coverage = np.stack([apply_weights(share, weights) for share in canvas.coverage.values()])
    truth = np.where(coverage.sum(0) >= 0.5, 1 + coverage.argmax(0), 0).astype(np.uint8)
    image += np.float32(scanner.sharpness) * (image - gaussian_filter(image, (0.7, 0.7, 0)))
    middle = np.exp(-((axes[0][:, None] / 110) ** 2) - (axes[1][None] / 85) ** 2)[..., None]
    image += _noise(rng, image.shape, scanner) * (0.65 + 0.4 * middle).astype(np.float32)
    image = scanner.gain * (image + 1000) - 1000 + scanner.shift_hu
    return np.clip(image, *RANGE_HU).astype(np.float32), truth


def _noise(rng: np.random.Generator, shape: tuple[int, ...], scanner: Scanner) -> Array:
    noise = rng.standard_normal(shape, dtype=np.float32)
    if scanner.sharpness > 0:
        noise += np.float32(0.8 * scanner.sharpness) * (noise - gaussian_filter(noise, (0.9, 0.9, 0.3)))
    else:
        width = 0.5 - 0.3 * scanner.sharpness
        noise = gaussian_filter(noise, (width, width, 0.3))
    return noise * np.float32(scanner.noise_hu / noise.std())


def _with_table(canvas: Canvas) -> Array:
    """The patient on a thin curved shell of carbon fibre."""
    x, y = canvas.space.axes[0][:, None], canvas.space.axes[1][None]
    is_body = (canvas.hu > -200).any(axis=2)
    back = y[0, np.argmax(is_body.any(axis=0))]
    depth = back - TABLE_GAP_MM + 0.0009 * x**2 - y
    shell = (np.abs(depth) < 1.6) & (np.abs(x) < 150)
    filling = (depth > 0) & (depth < 30) & (np.abs(x) < 150)
    table = np.where(shell, -150.0, np.where(filling, -930.0, AIR_HU)).astype(np.float32)
    return np.maximum(canvas.hu, table[..., None])


def _slice_profile(new: Array, old: Array, width_mm: float) -> Array:
    """(new, old) weights: each recorded voxel averages a triangle twice as wide as the voxel."""
    width = max(width_mm, float(old[1] - old[0]))
    weights = np.clip(1 - np.abs(new[:, None] - old[None]) / width, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
