"""What does `dsm-predict` write? Label map, legend, probabilities, anomaly map; all that was asked for, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from dsm_core.classes import ClassKind
from dsm_core.inference import Prediction

_ENDINGS = (".nii.gz", ".nii")


def output_stem(path: Path) -> str | None:
    """The name of an image without its ending; None where it is no name of a NIfTI file."""
    ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), None)
    return None if ending is None or path.name == ending else path.name.removesuffix(ending)


def write_prediction(
    prediction: Prediction,
    queries: Sequence[str],
    scan: nibabel.Nifti1Image,
    output: Path | None,
    anomaly: Path | None,
    encoder: str,
) -> list[Path]:
    """Label map with legend and probabilities, and anomaly map, as far as asked for; all of them or none."""
    images: dict[Path, np.ndarray] = {}
    texts: dict[Path, str] = {}
    if output is not None:
        stem = output_stem(output)
        images[output] = _painted(prediction)
        if prediction.probabilities is not None:
            layers = prediction.probabilities.permute(1, 2, 3, 0).float().numpy()
            path = output.with_name(f"{stem}_probability{output.name.removeprefix(f'{stem}')}")
            images[path] = layers[..., 0] if len(queries) == 1 else layers
        texts[output.with_name(f"{stem}.json")] = json.dumps(_legend(prediction, queries, encoder), indent=2)
    if anomaly is not None and prediction.anomaly is not None:
        images[anomaly] = prediction.anomaly.numpy()
    partial = {path: path.with_name(f".partial-{path.name}") for path in (*images, *texts)}
    try:
        for path, values in images.items():
            nibabel.save(_like(scan, values), partial[path])  # type: ignore[attr-defined]
        for path, text in texts.items():
            partial[path].write_text(text)
        for path, written in partial.items():
            os.replace(written, path)
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)
    return list(partial)


def _painted(prediction: Prediction) -> np.ndarray:
    """Label map: lesions are painted over organs, later queries over earlier ones."""
    painted = np.zeros(prediction.masks.shape[1:], dtype=np.uint8)
    for row in sorted(range(len(prediction.classes)), key=lambda row: prediction.classes[row].kind is ClassKind.LESION):
        painted[prediction.masks[row].numpy()] = row + 1
    return painted


def _legend(prediction: Prediction, queries: Sequence[str], encoder: str) -> dict[str, Any]:
    about = zip(queries, prediction.classes, prediction.volumes_ml(), prediction.presence.tolist(), strict=True)
    labels = {
        query: {"value": value, "class": info.name, "kind": info.kind, "volume_ml": volume_ml, "presence": presence}
        for value, (query, info, volume_ml, presence) in enumerate(about, start=1)
    }
    return {"text_encoder": encoder, "remarks": list(prediction.remarks), "labels": labels}


def _like(scan: nibabel.Nifti1Image, values: np.ndarray) -> nibabel.Nifti1Image:
    """An image in the scan's grid; of its header only the geometry is kept, since text fields may name the patient."""
    image = nibabel.Nifti1Image(values, scan.affine)
    if isinstance(scan.header, nibabel.Nifti1Header):
        image.set_qform(*scan.get_qform(coded=True))
        image.set_sform(*scan.get_sform(coded=True))
        image.header.set_xyzt_units(*scan.header.get_xyzt_units())
    return image
