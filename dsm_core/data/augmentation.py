"""How may a training patch differ from its scan? Small zooms and turns, scanner-like changes of intensity.

Never left-right flips: left and right kidney are different classes. Numbers are drawn first, then applied, so a patch
can be replayed from its generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import AdjustContrast, GaussianSmooth
from torch import Tensor

from dsm_core.data.volumes import Volume

_GEOMETRY_SHARE = 0.4
_ZOOM = (0.85, 1.2)
_TURN_DEG = 12.0
_SHIFT = 0.05
_SCALE = (0.85, 1.15)
_GAMMA_SHARE, _GAMMA = 0.3, (0.8, 1.25)
_NOISE_SHARE, _NOISE_SD = 0.5, 0.04
_KERNEL_SHARE, _BLUR_SD, _SHARPEN = 0.25, (0.4, 0.9), (0.3, 1.0)


@dataclass(frozen=True)
class Geometry:
    """A zoom (above 1 enlarges) and a turn about the z axis."""

    zoom: float
    turn_deg: float


def draw_geometry(generator: np.random.Generator) -> Geometry | None:
    """A zoom and a turn for some patches, None for the others."""
    if generator.random() >= _GEOMETRY_SHARE:
        return None
    return Geometry(generator.uniform(*_ZOOM), generator.uniform(-_TURN_DEG, _TURN_DEG))


def sample_box(
    volume: Volume, centre: Sequence[float] | np.ndarray, size: Sequence[int], geometry: Geometry | None
) -> tuple[Tensor, Tensor]:
    """Image (1, *size) float32 and label (1, *size) int16 around a centre in voxels; 0 outside the scan.

    Args:
        geometry: None cuts on whole voxels; else image (trilinear) and label (nearest) are resampled in one step.
    """
    assert volume.label is not None
    if geometry is None:
        start = [round(float(c) - s / 2) for c, s in zip(centre, size, strict=True)]
        return _cut(volume.image, start, size).float(), _cut(volume.label, start, size).to(torch.int16)
    matrix = _source_matrix(geometry, volume.spacing_mm)
    reach = np.abs(matrix) @ (np.array(size) / 2) + 1
    start = [math.floor(c - r) for c, r in zip(centre, reach, strict=True)]
    box = [2 * math.ceil(r) + 1 for r in reach]
    # grid_sample counts axes from the last and from -1 to 1 over the box (align_corners=False).
    scaled = matrix * np.array(size)[None, :] / np.array(box)[:, None]
    offset = 2 * (np.asarray(centre, float) - start) / box - 1
    theta = np.concatenate([scaled[::-1, ::-1], offset[::-1, None]], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta.astype(np.float32))[None], [1, 1, *size], align_corners=False)
    image, label = _cut(volume.image, start, box).float(), _cut(volume.label, start, box).float()
    image = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    label = F.grid_sample(label[None], grid, mode="nearest", padding_mode="zeros", align_corners=False)[0]
    return image, label.to(torch.int16)


def _source_matrix(geometry: Geometry, spacing_mm: Sequence[float]) -> np.ndarray:
    angle = math.radians(geometry.turn_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    spacing = np.array(spacing_mm)
    return turn * spacing[None, :] / spacing[:, None] / geometry.zoom


def _cut(volume: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """The box (1, *size) of a volume (1, X, Y, Z); parts outside it are 0."""
    box = volume.new_zeros((1, *size))
    inside = [(max(0, b), min(n, b + s)) for b, s, n in zip(start, size, volume.shape[1:], strict=True)]
    if all(low < high for low, high in inside):
        source = tuple(slice(low, high) for low, high in inside)
        target = tuple(slice(low - b, high - b) for (low, high), b in zip(inside, start, strict=True))
        box[(slice(None), *target)] = volume[(slice(None), *source)]
    return box


def change_intensity(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Another scanner's reading of a patch (1, X, Y, Z): kernel, gamma, scale, shift and noise."""
    if generator.random() < _KERNEL_SHARE:
        smooth = _plain(GaussianSmooth(sigma=generator.uniform(*_BLUR_SD))(image))
        sharpens, amount = generator.random() < 0.5, generator.uniform(*_SHARPEN)
        image = image + amount * (image - smooth) if sharpens else smooth
    if generator.random() < _GAMMA_SHARE:
        image = _plain(AdjustContrast(gamma=generator.uniform(*_GAMMA))(image))
    image = image * generator.uniform(*_SCALE) + generator.uniform(-_SHIFT, _SHIFT)
    if generator.random() < _NOISE_SHARE:
        noise = generator.standard_normal(tuple(image.shape), dtype=np.float32)
        image = image + generator.uniform(0, _NOISE_SD) * torch.from_numpy(noise)
    return image


def _plain(image: Any) -> Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)
