"""What does a trained model find in a scan? Phrases in; masks, presence and the anomaly map in the scan's own grid out.

Axis legend: `Q` queries, `X Y Z` voxels as stored on the scan's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from dsm_core.checkpoint import Checkpoint
from dsm_core.classes import ClassInfo, describe_class
from dsm_core.config import DataConfig
from dsm_core.data.volumes import Volume, read_image
from dsm_core.hosts import check_host, host_organs, keep_near_hosts, places_searched
from dsm_core.model import DSM
from dsm_core.own_grid import OwnGrid
from dsm_core.text_space import TextSpace, TextSpaceError
from dsm_core.volume_answers import predict_volume


class NoPriorError(ValueError):
    """A model that does not know healthy tissue was asked how a scan departs from it."""


@dataclass(frozen=True)
class Prediction:
    """Answers to the queries, in the scan's own grid.

    Attributes:
        classes: what each query was understood as, in the order asked.
        masks: (Q, X, Y, Z) bool.
        presence: (Q,) probability that the class is in the scan.
        affine: (4, 4) float64, voxel -> mm, the scan's own.
        probabilities: (Q, X, Y, Z) float16, or None where they were not asked for.
        anomaly: (X, Y, Z) float32, departure from healthy tissue in standard deviations; None where not asked for.
        remarks: what the asker should know of this scan.
    """

    classes: tuple[ClassInfo, ...]
    masks: Tensor
    presence: Tensor
    affine: np.ndarray
    probabilities: Tensor | None = None
    anomaly: Tensor | None = None
    remarks: tuple[str, ...] = ()

    def volumes_ml(self) -> list[float]:
        """Volume of each mask in millilitres."""
        voxel_ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        return [int(mask.sum()) * voxel_ml for mask in self.masks]


class Predictor:
    """Answers text queries on scans with one trained model."""

    def __init__(
        self,
        model: DSM,
        text: TextSpace,
        data: DataConfig,
        device: torch.device | str = "cpu",
        host_margin_mm: float | None = None,
        host: str | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            host_margin_mm: lesions are kept only within this distance of their predicted host organ, where the text
                space holds that organ; None keeps them everywhere.
            host: organ in which lesions are looked for whose own host is unknown.

        Raises:
            HostError: the model was trained on no such organ.
        """
        self.model, self.text, self.data = model.to(device), text, data
        self.host_margin_mm, self.host = host_margin_mm, host
        if host is not None:
            check_host(host, model, text)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        host_margin_mm: float | None = None,
        host: str | None = None,
    ) -> Predictor:
        """The predictor of a saved model."""
        return cls(checkpoint.model, checkpoint.text, checkpoint.data, device, host_margin_mm, host)

    def understand(self, queries: Sequence[str]) -> tuple[ClassInfo, ...]:
        """The class each query means: one of the text space by name or synonym, else what its own words say.

        Raises:
            TextSpaceError: no query, an empty query, or one that the encoder at hand cannot encode.
        """
        if not queries:
            raise TextSpaceError("found no query; wanted one or more phrases such as 'liver tumor'")
        self.text.encode(queries)
        return tuple(self.text.find(query) or describe_class(query) for query in queries)

    def places_searched(self, classes: Sequence[ClassInfo]) -> dict[str, str]:
        """Of each lesion among the classes, by name: where it is looked for, and how that is known."""
        return places_searched(self.model.query_set([info.name for info in classes], self.text, self.host))

    def check_prior(self) -> None:
        """Return silently if the model can say how a scan departs from health.

        Raises:
            NoPriorError: its prior was never trained.
        """
        if not self.model.prior.is_trained:
            raise NoPriorError(
                "this model holds no trained prior of healthy tissue, so it cannot say how a scan departs from it; "
                "use the checkpoint of a run with prior.rounds above 0"
            )

    def predict(
        self,
        scan: Path | Volume,
        queries: Sequence[str],
        threshold: float = 0.5,
        keep_probabilities: bool = False,
        keep_anomaly: bool = False,
        progress: bool = False,
    ) -> Prediction:
        """Masks of the queries in the scan's own grid and affine.

        Args:
            scan: a NIfTI file in Hounsfield units, or a volume already on the working grid.
            queries: none where only the anomaly map is wanted.
            keep_anomaly: with the map of departure from health, which needs no query.

        Raises:
            TextSpaceError: see `understand`.
            NoPriorError: the anomaly map is wanted, and the model's prior was never trained.
            DatalistError: the file cannot be read as one finite 3-D scan.
        """
        if keep_anomaly:
            self.check_prior()
        classes = () if keep_anomaly and not queries else self.understand(queries)
        if isinstance(scan, Volume):
            image = MetaTensor(scan.image, affine=scan.affine)
            shape, affine = tuple(image.shape[1:]), np.asarray(scan.affine, dtype=np.float64)
        else:
            image = read_image(scan, self.data)
            stored = nibabel.load(scan)  # type: ignore[attr-defined]
            shape, affine = tuple(stored.shape), np.asarray(stored.affine, dtype=np.float64)  # type: ignore[attr-defined]
        hosts = [[] for _ in classes] if self.host_margin_mm is None else host_organs(classes, self.text)
        asked = [info.name for info in classes] + [name for names in hosts for name in names]
        answer = predict_volume(
            self.model,
            image.as_tensor(),
            self.model.query_set(asked, self.text, self.host),
            self.data,
            keep_anomaly,
            progress,
        )
        probabilities = answer.probabilities[: len(classes)]
        if self.host_margin_mm is not None:
            probabilities = keep_near_hosts(
                answer.probabilities, hosts, threshold, self.host_margin_mm, self.data.spacing_mm
            )
        grid = OwnGrid(shape, affine, image.affine)
        masks, kept = grid.masks(probabilities, threshold, keep_probabilities)
        anomaly = grid.map(answer.anomaly) if keep_anomaly and answer.anomaly is not None else None
        return Prediction(classes, masks, answer.presence[: len(classes)], affine, kept, anomaly, answer.remarks)
