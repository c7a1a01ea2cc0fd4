"""What do the organ queries see in a whole scan? Windows that overlap, blended; on the way to every visual prompt.

Axis legend: B windows, Q queries, O organs of the context, X Y Z voxels in RAS+ order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor

from dsm_core.config import DataConfig
from dsm_core.model import DSM, OrganReading, QuerySet

STRIDE = 16  # voxels; sizes and windows are multiples of it, so that every map of the pyramid starts on a voxel


def padded(image: Tensor, patch: Sequence[int]) -> Tensor:
    """(..., X, Y, Z) with air behind it, up to multiples of `STRIDE` and at least one patch."""
    sizes = [max(-(-n // STRIDE) * STRIDE, p) for n, p in zip(image.shape[-3:], patch, strict=True)]
    ends = [size - n for size, n in zip(sizes, image.shape[-3:], strict=True)]
    return F.pad(image, (0, ends[2], 0, ends[1], 0, ends[0]))


@torch.no_grad()
def read_organs(
    model: DSM, image: Tensor, queries: QuerySet, data: DataConfig, overlap: float = 0.25, progress: bool = False
) -> tuple[OrganReading, Tensor, Tensor]:
    """What the trained organs, and those asked for, look like.

    Args:
        image: (1, X, Y, Z) in [0, 1], as `padded` leaves it.
        overlap: least share of a window that it has in common with its neighbour; windows are weighted by a Gaussian.

    Returns:
        The reading of the context; probabilities (Q, X, Y, Z) of the asked organs; their presence (Q,), the largest
        over the windows.
    """
    device = queries.text.device
    organs = list(dict.fromkeys([*range(queries.context), *queries.asked_organs]))
    width = model.tumors.feature_width
    presence = torch.zeros(len(organs), device=device)
    seen_queries = torch.zeros(queries.context + 1, model.void.weight.shape[0], device=device)
    seen_weight = torch.full((queries.context + 1, 1), 1e-6, device=device)
    kept = [*range(queries.context), queries.organs]

    def look(windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masks = windows.new_zeros(len(windows), len(organs), *windows.shape[2:])
        quarter, eighth = (windows.new_zeros(len(windows), width, *(n // k for n in windows.shape[2:])) for k in (4, 8))
        has_tissue = windows.flatten(1).amax(1) > 0  # air is nothing, and would blur what the organs look like
        if has_tissue.any():
            features = model.encode_image(windows[has_tissue])
            output = model.find_organs(features, queries, organs)
            present = output.presence_logits.float().sigmoid()
            torch.maximum(presence, present.amax(0), out=presence)
            # An organ looks as it does where it is; the void looks everywhere as it does.
            weight = torch.cat([present[:, : queries.context] + 1e-6, present.new_ones(len(present), 1)], 1)
            seen_weight.add_(weight.sum(0)[:, None])
            seen_queries.add_(torch.einsum("bo,boc->oc", weight, output.organ_queries[:, kept].float()))
            masks[has_tissue] = output.mask_logits.float().sigmoid()
            eighth[has_tissue] = features.eighth.float()
            quarter[has_tissue] = features.quarter.float()
        return masks, quarter, eighth  # MONAI wants the finest first

    was_training = model.training
    model.eval()
    try:
        found: Any = sliding_window_inference(
            image[None],
            roi_size=data.patch,
            # On CPU too: PyTorch has a fast 3-D convolution for batches, and a slow one for a single window.
            sw_batch_size=4 if device.type == "cpu" else 8,
            predictor=look,
            overlap=[_overlap(p, overlap) for p in data.patch],
            mode="gaussian",
            sw_device=device,
            device=image.device,
            progress=progress,
        )
    finally:
        model.train(was_training)
    masks, quarter, eighth = (value.as_subclass(Tensor) for value in found)
    looks = (seen_queries / seen_weight)[None].to(image.device)
    asked = [organs.index(i) for i in queries.asked_organs]
    reading = OrganReading(masks[:, : queries.context], looks, eighth, quarter)
    return reading, masks[0, asked], presence[asked].to(image.device)


def _overlap(patch: int, least: float) -> float:
    """At least this overlap, such that windows start on multiples of `STRIDE`."""
    step = max(STRIDE, int(patch * (1 - least)) // STRIDE * STRIDE)
    return 1 - (step + 0.5) / patch if step < patch else 0.0
