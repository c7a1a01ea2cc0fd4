"""What each site can segment: the site x class matrix of a method on held-out cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsm_core.classes import ClassKind
from dsm_core.config import Config, ConfigError
from dsm_core.data import Case, Datalist, class_masks, read_datalist, site_folders, split_held_out
from dsm_core.evaluation import CaseScore, MatrixRow, class_status, matrix_rows, score_case
from dsm_core.inference import Prediction, Predictor
from dsm_core.model import DSM
from dsm_core.text_space import TextSpace
from simulations.overlays import Overlay


@dataclass(frozen=True)
class Scored:
    """One held-out case, segmented by one model."""

    case: Case
    score: CaseScore
    overlays: tuple[Overlay, ...] = ()


def held_out_datalists(config: Config, folders: Mapping[str, Path], eval_dir: Path | None) -> dict[str, Datalist]:
    """Held-out cases of each site: its own folder in `eval_dir`, or `eval_dir` itself for all, or a share of its cases.

    Raises:
        DatalistError: a folder has faults.
        ConfigError: `eval_dir` holds no datalist for some site.
    """
    if eval_dir is None:
        return {
            site: split_held_out(read_datalist(folder), config.data.held_out, seed=0)[1]
            for site, folder in folders.items()
        }
    if (eval_dir / "dataset.json").exists():
        shared = read_datalist(eval_dir)
        return dict.fromkeys(folders, shared)
    found = {folder.name: folder for folder in site_folders(eval_dir)}
    if missing := sorted(set(folders) - set(found)):
        raise ConfigError(
            f"eval_dir has no dataset.json and no folder for {', '.join(missing)}; "
            f"it wants one datalist for all sites, or one sub-folder a site"
        )
    return {site: read_datalist(found[site]) for site in folders}


def score_method(
    method: str,
    models: Mapping[str, DSM],
    held_out: Mapping[str, Datalist],
    labelled: Mapping[str, tuple[str, ...]],
    text: TextSpace,
    config: Config,
    on_case: Callable[[], None],
) -> tuple[list[MatrixRow], list[Overlay]]:
    """Matrix rows of a method, and pictures of its first held-out case at each site.

    A model and a datalist that several sites share are scored once.

    Args:
        models: model that each site ends up with. labelled: classes that each site labels.
    """
    everywhere = {name for names in labelled.values() for name in names}
    scored: dict[tuple[int, int], list[Scored]] = {}
    rows: list[MatrixRow] = []
    pictures: list[Overlay] = []
    workers = config.threads or torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for site, datalist in held_out.items():
            key = (id(models[site]), id(datalist))
            names = tuple(sorted(datalist.labelled_classes))
            status = {name: class_status(name, labelled[site], everywhere) for name in names}
            if key not in scored:
                predictor = Predictor(models[site], text, config.data)

                def score(
                    case: Case,
                    predictor: Predictor = predictor,
                    datalist: Datalist = datalist,
                    names: tuple[str, ...] = names,
                ) -> Scored:
                    done = _score(predictor, case, datalist, names, config, draw=case is datalist.cases[0])
                    on_case()
                    return done

                scored[key] = list(pool.map(score, datalist.annotated_cases))
            rows += matrix_rows(method, site, names, [done.score for done in scored[key]], labelled[site], everywhere)
            pictures += [
                replace(picture, method=method, site=site, status=status[picture.class_name])
                for done in scored[key]
                for picture in done.overlays
            ]
    return rows, pictures


def _score(
    predictor: Predictor, case: Case, datalist: Datalist, names: tuple[str, ...], config: Config, draw: bool
) -> Scored:
    assert case.label is not None
    wants_anomaly = draw and predictor.model.prior.is_trained
    prediction = predictor.predict(case.image, names, keep_anomaly=wants_anomaly)
    label: Any = nib.load(case.label)
    values = torch.from_numpy(np.asarray(label.dataobj).astype(np.int16))[None]
    truth = class_masks(values, names, datalist)
    spacing = tuple(float(s) for s in label.header.get_zooms()[:3])
    score = score_case(
        prediction.masks, truth, spacing, config.nsd_tolerance_mm, [name in case.annotated for name in names]
    )
    overlays = _overlays(case, prediction, truth, names, score, config) if draw else ()
    return Scored(case, score, overlays)


def _overlays(
    case: Case, prediction: Prediction, truth: Tensor, names: tuple[str, ...], score: CaseScore, config: Config
) -> tuple[Overlay, ...]:
    """One picture a class that the case holds; of a lesion with the anomaly map."""
    scan: Any = nib.load(case.image)
    image, spacing = _canonical(np.asarray(scan.dataobj, np.float32), scan)
    low, high = config.data.intensity_hu
    shown = np.clip((image - low) / (high - low), 0, 1)
    anomaly = None if prediction.anomaly is None else _canonical(prediction.anomaly.numpy(), scan)[0]
    overlays = []
    for i, name in enumerate(names):
        if truth[i].any():
            true, found = (_canonical(mask[i].numpy(), scan)[0] for mask in (truth, prediction.masks))
            beside = anomaly if prediction.classes[i].kind is ClassKind.LESION else None
            overlays.append(Overlay(shown, true, found, "", "", name, "", float(score.dice[i]), spacing, beside))
    return tuple(overlays)


def _canonical(array: NDArray[Any], scan: Any) -> tuple[NDArray[Any], tuple[float, ...]]:
    """An array on a scan's grid, turned to RAS+, and its voxel size in mm."""
    turned = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float32), scan.affine))
    zooms = turned.header.get_zooms()
    return np.asarray(turned.dataobj).astype(array.dtype), tuple(float(s) for s in zooms[:3])
