"""How does a scan on disk become a tensor? NIfTI -> RAS+, one spacing, a fixed HU window (MONAI).

Axes: `X Y Z` voxels in RAS+ order.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import (
    EnsureChannelFirst,
    LoadImage,
    Orientation,
    ScaleIntensityRange,
    Spacing,
    SpatialResample,
)
from scipy.ndimage import find_objects
from torch import Tensor

from dsm_core.config import DataConfig
from dsm_core.data.datalist import Case, Datalist
from dsm_core.data.faults import DatalistError, Fault
from dsm_core.data.inspection import grid_fault


@dataclass
class Volume:
    """One case on the working grid.

    Attributes:
        image: (1, X, Y, Z) float32 in [0, 1]; 0 is air (the lower end of the HU window).
        label: (1, X, Y, Z) int16 mask values of its site, or None where the case has no label map.
        affine: (4, 4) float64, voxel of the working grid -> mm.
        spacing_mm: length of a voxel along X, Y and Z.
    """

    image: Tensor
    label: Tensor | None
    case: Case
    affine: Tensor
    spacing_mm: tuple[float, float, float]


def read_image(path: Path, data: DataConfig) -> MetaTensor:
    """The scan on the working grid, (1, X, Y, Z) float32 in [0, 1], with its `affine`.

    Raises:
        DatalistError: the file is missing, truncated, not 3-D or holds values that are not finite.
    """
    return _to_grid(_open(path, "here"), data)


def load_volume(case: Case, data: DataConfig, datalist: Datalist | None = None) -> Volume:
    """The image and label map of a case on the working grid; the label lies exactly on the image's grid.

    Args:
        datalist: its site and label values are checked where given.

    Raises:
        DatalistError: see `read_image`; or the label map lies off its image or holds values outside `labels`.
    """
    site = datalist.site if datalist else "here"
    scan = _open(case.image, site)
    image = _to_grid(scan, data)
    label = None
    if case.label is not None:
        painted = _open(case.label, site)
        grids = [(tuple(held.shape[1:]), held.affine.numpy()) for held in (scan, painted)]
        if fault := grid_fault(case.label.name, *grids):
            raise DatalistError(site, [fault])
        values = painted[0].numpy().astype(np.int32)
        boxes = {value: box for value, box in enumerate(find_objects(values), start=1) if box}
        known = set(boxes) if datalist is None else set().union(*datalist.regions.values())
        if set(boxes) - known or values.min() < 0 or (values != painted[0].numpy()).any():
            found = f"label values from {painted.min():g} to {painted.max():g}, some of them outside `labels`"
            raise DatalistError(site, [Fault(case.label.name, found, "only the mask values that `labels` names")])
        label = _label_on_grid(values, boxes, painted.affine, image, data)
    x, y, z = (float(length) for length in image.pixdim)
    return Volume(image.as_tensor(), label, case, image.affine, (x, y, z))


def _open(path: Path, site: str) -> MetaTensor:
    """(1, X, Y, Z) float32 in RAS+ order, as stored."""
    try:
        dimensions = len(nibabel.load(path).shape)  # type: ignore[attr-defined]
        if dimensions != 3:
            raise DatalistError(site, [Fault(path.name, f"{dimensions} dimensions", "3-D scans, one volume a file")])
        scan = EnsureChannelFirst(channel_dim="no_channel")(LoadImage(image_only=True, dtype=np.float32)(path))
        scan = Orientation(axcodes="RAS", labels=None)(scan)
    except DatalistError:
        raise
    except Exception as error:  # nibabel, zlib and MONAI each raise their own on a broken file
        found = f"an unreadable file ({type(error).__name__})"
        raise DatalistError(site, [Fault(path.name, found, "complete NIfTI files")]) from error
    if not torch.isfinite(scan).all():
        raise DatalistError(site, [Fault(path.name, "voxels that are NaN or infinite", "finite values in every voxel")])
    return cast(MetaTensor, scan)


def _to_grid(scan: MetaTensor, data: DataConfig) -> MetaTensor:
    # The window comes first: metal or air would else bleed through the interpolation.
    low, high = data.intensity_hu
    windowed = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(scan)
    resample = Spacing(pixdim=data.spacing_mm, mode="bilinear", padding_mode="border", dtype=np.float32)
    return cast(MetaTensor, resample(_pooled(cast(MetaTensor, windowed), data.spacing_mm)))


def _label_on_grid(
    values: np.ndarray, boxes: dict[int, Any], affine: Tensor, image: MetaTensor, data: DataConfig
) -> Tensor:
    """The value with the largest share of each voxel; nearest would let small structures come and go with the grid.

    Each value is resampled like an image, within its bounding box only; background has the share that is left.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=np.float32)
    label = torch.zeros(image.shape[1:], dtype=torch.int16)
    shares, left = torch.zeros(label.shape), torch.ones(label.shape)
    for value, box in boxes.items():
        start, stop = np.array([[axis.start, axis.stop] for axis in box]).T
        start, stop = np.maximum(start - 1, 0), np.minimum(stop + 1, values.shape)
        mask = torch.from_numpy(values[tuple(map(slice, start, stop))] == value).float()[None]
        pooled = _pooled(MetaTensor(mask, affine=_shifted(affine, start)), data.spacing_mm)
        corners = np.array([(*c, 1) for c in itertools.product(*zip(start - 1, stop, strict=True))])
        reached = (corners @ (torch.linalg.inv(image.affine) @ affine).numpy().T)[:, :3]
        low = np.clip(np.floor(reached.min(0)).astype(int), 0, np.array(label.shape) - 1)
        high = np.clip(np.ceil(reached.max(0)).astype(int) + 1, low + 1, label.shape)
        share = resample(pooled, dst_affine=_shifted(image.affine, low), spatial_size=tuple((high - low).tolist()))
        part = tuple(map(slice, low, high))
        gain = cast(MetaTensor, share).as_tensor()[0]
        left[part] -= gain
        label[part] = torch.where(gain > shares[part], torch.tensor(value, dtype=torch.int16), label[part])
        shares[part] = torch.maximum(shares[part], gain)
    return torch.where(left > shares, torch.zeros_like(label), label)[None]


def _shifted(affine: Tensor, start: np.ndarray) -> Tensor:
    """The affine of a box that starts at voxel `start`."""
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.as_tensor(start)
    return affine @ shift


def _pooled(scan: MetaTensor, spacing_mm: Sequence[float]) -> MetaTensor:
    """Whole voxels averaged while the working grid is at least twice as coarse: interpolation alone would skip them."""
    factors = [max(1, int(wanted / float(found) + 0.05)) for wanted, found in zip(spacing_mm, scan.pixdim, strict=True)]
    if max(factors) == 1:
        return scan
    pooled = F.avg_pool3d(scan.as_tensor()[None], factors, ceil_mode=True)[0]
    step = torch.diag(torch.tensor([*factors, 1], dtype=torch.float64))
    step[:3, 3] = (torch.tensor(factors, dtype=torch.float64) - 1) / 2
    return MetaTensor(pooled, affine=scan.affine @ step)


def class_masks(label: Tensor, names: Sequence[str], datalist: Datalist) -> Tensor:
    """Masks of the named classes, (n, X, Y, Z) bool, from a label map (1, X, Y, Z).

    An organ's mask holds the lesions hosted in it. A class that the site does not name has an empty mask.
    """
    masks = torch.zeros((len(names), *label.shape[1:]), dtype=torch.bool, device=label.device)
    for mask, name in zip(masks, names, strict=True):
        for value in datalist.mask_values(name) if name in datalist.values else ():
            mask |= label[0] == value
    return masks


class SiteVolumes(Sequence[Volume]):
    """The volumes of a datalist, each loaded once, when first asked for; safe to share between threads.

    Held as float16 images and uint8 (else int16) label maps; indexing gives the float32 and int16 of `Volume`.
    """

    def __init__(self, datalist: Datalist, data: DataConfig) -> None:
        self.datalist, self.data = datalist, data
        self._held: list[Volume | None] = [None] * len(datalist.cases)
        self._locks = [threading.Lock() for _ in datalist.cases]

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        held = self.compact(index)
        label = None if held.label is None else held.label.to(torch.int16)
        return replace(held, image=held.image.float(), label=label)

    def compact(self, index: int) -> Volume:
        """The volume as it is held: image float16, label uint8 or int16. Not to be written to."""
        with self._locks[index]:
            held = self._held[index]
            if held is None:
                held = self._held[index] = self._load(index)
            return held

    def preload(self, threads: int = 1) -> SiteVolumes:
        """Load every case now, in threads; returns itself."""
        with ThreadPoolExecutor(max(1, threads)) as pool:
            list(pool.map(self.compact, range(len(self))))
        return self

    def _load(self, index: int) -> Volume:
        volume = load_volume(self.datalist.cases[index], self.data, self.datalist)
        label = volume.label
        if label is not None and max(self.datalist.values.values()) < 256:
            label = label.to(torch.uint8)
        return replace(volume, image=volume.image.half(), label=label)
