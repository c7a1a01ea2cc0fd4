"""What does the model see in a scan: sliding window over the volume, masks back in the scan's own grid.

Axis legend: `B` windows, `Q` queries, `X Y Z` voxels (RAS+ on the working grid; as stored on the scan's own grid).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from dsm_core.checkpoint import Checkpoint
from dsm_core.classes import ClassInfo, ClassKind, describe_class
from dsm_core.config import DataConfig
from dsm_core.data.volumes import Volume, read_image
from dsm_core.model import DSM, QuerySet
from dsm_core.scan_reading import padded, read_organs
from dsm_core.text_space import TextSpace, TextSpaceError

_SLAB_VOXELS = 16_000_000  # voxels of the scan's own grid resampled at a time: a few hundred MB


@dataclass(frozen=True)
class Prediction:
    """Answers to the queries, in the scan's own grid.

    Attributes:
        classes: what each query was understood as, in the order asked.
        masks: (Q, X, Y, Z) bool.
        presence: (Q,) probability that the class is in the scan: the largest over the windows.
        affine: (4, 4) float64, voxel -> mm, the scan's own.
        probabilities: (Q, X, Y, Z) float16, or None where they were not asked for.
    """

    classes: tuple[ClassInfo, ...]
    masks: Tensor
    presence: Tensor
    affine: np.ndarray
    probabilities: Tensor | None = None

    def volumes_ml(self) -> list[float]:
        """Volume of each mask in millilitres."""
        voxel_ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        return [int(mask.sum()) * voxel_ml for mask in self.masks]


def predict_volume(
    model: DSM,
    image: Tensor,
    queries: QuerySet,
    data: DataConfig,
    overlap: float = 0.25,
    presence_gate: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Probabilities of the asked queries on the working grid; a window's features are computed once for all of them.

    Args:
        image: (1, X, Y, Z) in [0, 1] on any device.
        overlap: share of a window that it has in common with its neighbour; windows are weighted by a Gaussian.
        presence_gate: a window's probabilities shrink by twice its presence where that is below 1/2.

    Returns:
        Probabilities (Q, X, Y, Z) float32, on the image's device, and presence (Q,), the largest over the windows.
    """
    shape = image.shape[1:]
    whole = padded(torch.as_tensor(image), data.patch)
    reading, organs, presence = read_organs(model, whole, queries, data, overlap, progress)
    if queries.asked_lesions:
        with torch.no_grad():
            prompt = model.visual_prompt(whole[None], reading, queries.text[: queries.context])
            found = model.find_tumors(prompt, queries)
        organs = torch.cat([organs, found.mask_logits[0].sigmoid()])
        presence = torch.cat([presence, found.presence_logits[0].sigmoid()])
    placed = [*queries.asked_organs, *range(queries.organs, len(queries.names))]
    order = [placed.index(i) for i in queries.asked]
    probabilities, presence = organs[order], presence[order]
    if presence_gate:
        probabilities = probabilities * (2 * presence).clamp(max=1)[:, None, None, None]
    return probabilities[:, : shape[0], : shape[1], : shape[2]], presence


class Predictor:
    """Answers text queries on scans with one trained model."""

    def __init__(
        self,
        model: DSM,
        text: TextSpace,
        data: DataConfig,
        device: torch.device | str = "cpu",
        overlap: float = 0.25,
        presence_gate: bool = False,
        host_margin_mm: float | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            host_margin_mm: lesions are kept only within this distance of their predicted host organ, where the text
                space holds that organ; None keeps them everywhere.
        """
        self.model, self.text, self.data = model.to(device), text, data
        self.overlap, self.presence_gate, self.host_margin_mm = overlap, presence_gate, host_margin_mm

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        overlap: float = 0.25,
        presence_gate: bool = False,
        host_margin_mm: float | None = None,
    ) -> Predictor:
        """The predictor of a saved model."""
        return cls(checkpoint.model, checkpoint.text, checkpoint.data, device, overlap, presence_gate, host_margin_mm)

    def understand(self, queries: Sequence[str]) -> tuple[ClassInfo, ...]:
        """The class each query means: one of the text space by name or synonym, else what its own words say.

        Raises:
            TextSpaceError: no query, an empty query, or one that the encoder at hand cannot encode.
        """
        if not queries:
            raise TextSpaceError("found no query; wanted one or more phrases such as 'liver tumor'")
        self.text.encode(queries)
        return tuple(self.text.find(query) or describe_class(query) for query in queries)

    def predict(
        self,
        scan: Path | Volume,
        queries: Sequence[str],
        threshold: float = 0.5,
        keep_probabilities: bool = False,
        progress: bool = False,
    ) -> Prediction:
        """Masks of the queries in the scan's own grid and affine.

        Args:
            scan: a NIfTI file in Hounsfield units, or a volume already on the working grid.

        Raises:
            TextSpaceError: see `understand`.
            DatalistError: the file cannot be read as one finite 3-D scan.
        """
        classes = self.understand(queries)
        if isinstance(scan, Volume):
            image = MetaTensor(scan.image, affine=scan.affine)
            shape, affine = tuple(image.shape[1:]), np.asarray(scan.affine, dtype=np.float64)
        else:
            image = read_image(scan, self.data)
            stored = nibabel.load(scan)  # type: ignore[attr-defined]
            shape, affine = tuple(stored.shape), np.asarray(stored.affine, dtype=np.float64)  # type: ignore[attr-defined]
        hosts = self._host_organs(classes)
        asked = [info.name for info in classes] + [name for names in hosts for name in names]
        probabilities, presence = predict_volume(
            self.model,
            image.as_tensor(),
            self.model.query_set(asked, self.text),
            self.data,
            self.overlap,
            self.presence_gate,
            progress,
        )
        probabilities = self._within_hosts(probabilities, hosts, threshold)[: len(classes)]
        masks, kept = _own_grid(probabilities, image.affine, shape, affine, threshold, keep_probabilities)
        return Prediction(classes, masks, presence[: len(classes)], affine, kept)

    def _host_organs(self, classes: Sequence[ClassInfo]) -> list[list[str]]:
        """For each class, the organs of the text space that are its host ("kidney": also the right and left one)."""
        if self.host_margin_mm is None:
            return [[] for _ in classes]
        organs = [info.name for info in self.text.classes if info.kind is ClassKind.ORGAN]
        return [[name for name in organs if info.host and f" {name}".endswith(f" {info.host}")] for info in classes]

    def _within_hosts(self, probabilities: Tensor, hosts: Sequence[Sequence[str]], threshold: float) -> Tensor:
        following = len(hosts)
        for row, names in enumerate(hosts):
            if names and self.host_margin_mm is not None:
                host = (probabilities[following : following + len(names)] >= threshold).any(0).cpu().numpy()
                following += len(names)
                if host.any():
                    away_mm = np.asarray(distance_transform_edt(~host, sampling=self.data.spacing_mm))
                    probabilities[row] *= torch.as_tensor(away_mm <= self.host_margin_mm).to(probabilities.device)
                else:
                    probabilities[row] = 0
        return probabilities


def _own_grid(
    probabilities: Tensor,
    working_affine: Tensor,
    shape: tuple[int, ...],
    affine: np.ndarray,
    threshold: float,
    keep_probabilities: bool,
) -> tuple[Tensor, Tensor | None]:
    """Masks (Q, X, Y, Z), and probabilities where asked for, on the scan's own grid; slab by slab along X."""
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)
    working = MetaTensor(probabilities.cpu(), affine=working_affine)
    masks = torch.zeros((len(probabilities), *shape), dtype=torch.bool)
    kept = torch.zeros(masks.shape, dtype=torch.float16) if keep_probabilities else None
    thickness = max(1, _SLAB_VOXELS // (shape[1] * shape[2] * max(1, len(probabilities))))
    for start in range(0, shape[0], thickness):
        stop = min(start + thickness, shape[0])
        shift = np.eye(4)
        shift[0, 3] = start
        slab = resample(working, dst_affine=torch.as_tensor(affine @ shift), spatial_size=(stop - start, *shape[1:]))
        values = torch.as_tensor(slab).as_subclass(Tensor)
        masks[:, start:stop] = values >= threshold
        if kept is not None:
            kept[:, start:stop] = values.half()
    return masks, kept
