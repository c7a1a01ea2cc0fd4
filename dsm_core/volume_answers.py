"""What does the model answer about a volume? Organs in windows, then lesions where the scan departs from health.

Axis legend: `Q` queries, `O` trained organs, `X Y Z` voxels of the working grid in RAS+ order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsm_core.config import DataConfig
from dsm_core.device import placed
from dsm_core.model import DSM, QuerySet
from dsm_core.scan_reading import padded, read_organs

_FOUND = 0.5  # probability from which a voxel counts as an organ's


@dataclass(frozen=True)
class VolumeAnswer:
    """Answers on the working grid.

    Attributes:
        probabilities: (Q, X, Y, Z) float32, on the image's device.
        presence: (Q,) probability that the class is in the scan: of an organ the largest over the windows.
        anomaly: (X, Y, Z), departure from healthy tissue in standard deviations, zero off the organs; None where it
            was not looked for, or where the model's prior was never trained.
        remarks: what the asker should know of this scan.
    """

    probabilities: Tensor
    presence: Tensor
    anomaly: Tensor | None
    remarks: tuple[str, ...]


@torch.no_grad()
def predict_volume(
    model: DSM,
    image: Tensor,
    queries: QuerySet,
    data: DataConfig,
    wants_anomaly: bool = False,
    progress: bool = False,
) -> VolumeAnswer:
    """Answers of the asked queries on the working grid; what the scan shows is computed once for all of them.

    Args:
        image: (1, X, Y, Z) in [0, 1] on any device; smaller than a window, it is continued with air.
        wants_anomaly: also where no lesion is asked for.
    """
    x, y, z = image.shape[1:]
    whole = padded(torch.as_tensor(image), data.patch)
    reading, probabilities, presence = read_organs(model, whole, queries, data, progress=progress)
    remarks, anomaly = _remarks(image, reading.probabilities, data), None
    if queries.asked_lesions or wants_anomaly:
        text = queries.text[: queries.context]
        prompt = model.visual_prompt(whole[None].to(text.device), placed(reading, text.device), text)
        if model.prior.is_trained:
            anomaly = prompt.anomaly[0, 0, :x, :y, :z].float().to(image.device)
        if queries.asked_lesions:
            found = model.find_tumors(prompt, queries)
            probabilities = torch.cat([probabilities, found.mask_logits[0].float().sigmoid().to(image.device)])
            presence = torch.cat([presence, found.presence_logits[0].float().sigmoid().to(image.device)])
    places = [*queries.asked_organs, *range(queries.organs, len(queries.names))]
    order = [places.index(i) for i in queries.asked]
    return VolumeAnswer(probabilities[order][:, :x, :y, :z], presence[order], anomaly, remarks)


def _remarks(image: Tensor, context: Tensor, data: DataConfig) -> tuple[str, ...]:
    """Args: image (1, X, Y, Z); context (1, O, ...), probabilities of the trained organs."""
    said = []
    if any(n < p for n, p in zip(image.shape[1:], data.patch, strict=True)):
        sizes = [" x ".join(str(n) for n in size) for size in (image.shape[1:], data.patch)]
        said.append(
            f"the scan is smaller ({sizes[0]} voxels) than the model's window ({sizes[1]}): the rest is taken for air"
        )
    if not context.shape[1]:
        said.append("the model was trained on no organ, so lesions have none to lie in: expect little of them")
    elif context.amax() < _FOUND:
        said.append(
            f"none of the model's {context.shape[1]} organs was found in the scan: lesions have no organ to lie in"
        )
    return tuple(said)
