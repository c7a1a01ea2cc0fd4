"""The stages of a simulation: sites, rounds, baselines, matrix, report; each timed and written down as it ends."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from client.app import app as client_app
from dsm_core.checkpoint import save_checkpoint
from dsm_core.classes import ClassInfo
from dsm_core.config import Config, ConfigError, ServerConfig
from dsm_core.data import Datalist, DatalistError, check_folder, read_datalist, site_folders
from dsm_core.evaluation import MatrixRow
from dsm_core.model import DSM
from dsm_core.model.selective_scan import scan_backend
from server.federation import Federation, open_federation
from simulations.baselines import train_baselines, training_datalists
from simulations.grid import run_in_process
from simulations.matrix import held_out_datalists, score_method
from simulations.overlays import Overlay, save_overlays
from simulations.report import write_report
from simulations.results import RunFolder
from simulations.sites import generate_sites
from strategies.query_fedavg import ServerState

HELD_OUT = 0.2  # share of each site's cases that is scored when no eval_dir is given
SMOOTHING = 0.9  # of the training loss by which the best checkpoint is chosen; no held-out case takes part in it


@dataclass(frozen=True)
class Sites:
    """Where a simulation's data lies.

    Attributes:
        folders: site -> folder of its cases.
        held_out: site -> held-out cases, for scoring only.
        is_generated: phantoms, not patients.
    """

    folders: dict[str, Path]
    held_out: dict[str, Datalist]
    is_generated: bool


def simulate(config: Config, command: Sequence[str]) -> Path | None:
    """Run everything that a configuration asks for.

    Returns:
        The report's path; None after a dry run, which writes no run folder.
    """
    if config.sites_dir and not config.eval_dir and not config.data.held_out:
        config = replace(config, data=replace(config.data, held_out=HELD_OUT))
    seconds: dict[str, float] = {}
    with _timed(seconds, "sites"):
        sites = find_sites(config)
    datalists = training_datalists(sites.folders, config)
    _print_plan(config, sites, datalists)
    if config.dry_run:
        return None
    folder = RunFolder.create(config.out, config.name, config, list(command))
    classes = [info for datalist in sites.held_out.values() for info in datalist.classes.values()]
    with _timed(seconds, "federated"):
        federation, state, best = federate(config, "federated", sites, classes, folder)
    _describe(folder, config, sites, datalists, federation)
    folder.write_run_info(seconds=seconds)
    _save(folder.last_checkpoint, federation, state, "last round")
    _save(folder.best_checkpoint, federation, best, "lowest smoothed training loss")
    models = {"federated": _everywhere(federation.model_of(state), sites)}
    if config.compare == "all":
        with _timed(seconds, "fedavg"):
            plain = replace(config, server=plain_fedavg(config))
            other, state, _ = federate(plain, "fedavg", sites, classes, folder)
            models["fedavg"] = _everywhere(other.model_of(state), sites)
    if config.compare != "none":
        with _timed(seconds, "baselines"):
            models |= _baselines(config, datalists, federation, folder)
    with _timed(seconds, "scoring"):
        _score(config, sites, datalists, federation, models, folder)
    folder.write_run_info(seconds=seconds, finished=True)
    folder.close()
    return write_report(folder.path)


def find_sites(config: Config) -> Sites:
    """The sites of a run: the user's folders, or generated ones (kept and found again by their recipe).

    Raises:
        ConfigError: `sites_dir` or `eval_dir` is no folder, or holds no site.
        DatalistError: a site's folder has faults; those of all sites at once.
    """
    if config.sites_dir is None:
        root = Path(config.out) / "sites" / f"seed{config.seed}-sites{config.sites}-{_recipe_hash(config)}"
        with tqdm(desc="generating sites", unit="case", leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            made = generate_sites(root, config.sites, config.phantom, config.seed, show)
        return Sites(made.folders, held_out_datalists(config, made.folders, root / "eval"), True)
    root = _folder("sites_dir", config.sites_dir)
    folders = {path.name: path for path in site_folders(root)}
    if not folders:
        raise ConfigError(f"sites_dir={config.sites_dir} holds no site: no sub-folder has a dataset.json")
    eval_dir = None if config.eval_dir is None else _folder("eval_dir", config.eval_dir)
    held_out = held_out_datalists(config, folders, eval_dir)
    inspect_sites(folders | {f"eval of {site}": held.root for site, held in held_out.items() if eval_dir})
    _refuse_training_cases(folders, held_out if eval_dir else {})
    return Sites(folders, held_out, False)


def inspect_sites(folders: Mapping[str, Path]) -> None:
    """Open every scan of every site before anything is trained.

    Raises:
        DatalistError: with the faults of all sites at once.
    """
    faults = []
    once = {folder: site for site, folder in folders.items()}
    for folder, site in tqdm(once.items(), desc="checking sites", unit="site", leave=False):
        faults += [replace(fault, file=f"{site}/{fault.file}") for fault in check_folder(folder)]
    if faults:
        raise DatalistError(", ".join(folders), faults)


def _refuse_training_cases(folders: Mapping[str, Path], held_out: Mapping[str, Datalist]) -> None:
    trained = {case.image.resolve() for folder in folders.values() for case in read_datalist(folder).cases}
    scored = {case.image.resolve() for held in held_out.values() for case in held.cases}
    if shared := trained & scored:
        raise ConfigError(f"{len(shared)} scans of eval_dir are trained on too; give eval_dir cases that no site holds")


def _recipe_hash(config: Config) -> str:
    return hashlib.sha256(json.dumps(asdict(config.phantom), sort_keys=True).encode()).hexdigest()[:8]


def plain_fedavg(config: Config) -> ServerConfig:
    """FedAvg as published (McMahan et al. 2017): every tensor averaged by cases, server step 1, no server momentum.

    AdamW's moments stay at each site, whose rate is therefore the base rate (see `server.rounds.site_rate`).
    """
    return replace(
        config.server,
        site_weight="cases",
        class_rows="shared",
        moments="local",
        server_step="fixed",
        server_lr=1.0,
        momentum=0.0,
    )


def federate(
    config: Config, method: str, sites: Sites, classes: Sequence[ClassInfo], folder: RunFolder
) -> tuple[Federation, ServerState, ServerState]:
    """Run the rounds of one method in process; returns the last state and the one of lowest smoothed training loss."""
    best: ServerState | None = None
    smoothed, lowest = None, float("inf")
    bar = tqdm(total=config.rounds, desc=method, unit="round")

    def on_round(round: int, record: dict[str, Any], state: ServerState) -> None:
        nonlocal best, smoothed, lowest
        loss = float("nan") if record["loss"] is None else record["loss"]
        if math.isfinite(loss):
            smoothed = loss if smoothed is None else SMOOTHING * smoothed + (1 - SMOOTHING) * loss
            if smoothed < lowest:
                best, lowest = state, smoothed
        refused = [
            {"site": site, "reason": reason} for site, reason in {**record["refused"], **record["failed"]}.items()
        ]
        folder.log_round(method, {**record, "refused": refused, "rounds": config.rounds})
        bar.set_postfix(loss=f"{loss:.3f}")
        bar.update()
        for one in refused:
            bar.write(f"round {round}: {one['site']}: {one['reason']}")

    def serve(grid: Any, context: Any) -> tuple[Federation, ServerState]:
        federation = open_federation(grid, config, len(sites.folders), classes)
        return federation, federation.run(grid, on_round=on_round)

    with bar:
        result = run_in_process(serve, client_app, list(sites.folders.values()), {}, config.threads)
    assert result is not None
    federation, state = result
    return federation, state, best or state


def _baselines(
    config: Config, datalists: Mapping[str, Datalist], federation: Federation, folder: RunFolder
) -> dict[str, dict[str, DSM]]:
    pooled = config.compare == "all"
    total = config.rounds * len(datalists) * (2 if pooled else 1)
    lock = threading.Lock()
    with tqdm(total=total, desc="local and pooled" if pooled else "local", unit="round") as bar:

        def on_round(method: str, site: str, round: int, loss: float) -> None:
            with lock:
                losses = {site: loss} if method == "local" else {}
                rounds = config.rounds * (len(datalists) if method == "pooled" else 1)
                folder.log_round(method, {"round": round, "rounds": rounds, "loss": loss, "site_losses": losses})
                bar.update()

        return train_baselines(config, datalists, federation.text, federation.state.arrays, pooled, on_round)


def _score(
    config: Config,
    sites: Sites,
    datalists: Mapping[str, Datalist],
    federation: Federation,
    models: Mapping[str, Mapping[str, DSM]],
    folder: RunFolder,
) -> None:
    labelled = {site: datalist.labelled_classes for site, datalist in datalists.items()}
    rows: list[MatrixRow] = []
    pictures: list[Overlay] = []
    pairs = {
        (id(model), id(sites.held_out[site])): len(sites.held_out[site].annotated_cases)
        for of_method in models.values()
        for site, model in of_method.items()
    }
    with tqdm(total=sum(pairs.values()), desc="scoring", unit="case") as bar:
        for method, of_method in models.items():
            found, drawn = score_method(
                method, of_method, sites.held_out, labelled, federation.text, config, lambda: bar.update() and None
            )
            rows += found
            pictures += [picture for picture in drawn if method == "federated"]
    folder.write_matrix(rows)
    save_overlays(folder.overlays_dir, _choose(pictures, config.overlays))


def _choose(pictures: Sequence[Overlay], count: int) -> list[Overlay]:
    """Up to `count` pictures of each status: every class once before any class twice, in the order of the sites."""
    chosen: list[Overlay] = []
    for status in ("local", "foreign", "unseen"):
        of_status = [picture for picture in pictures if picture.status == status]
        first = {picture.class_name: i for i, picture in reversed(list(enumerate(of_status)))}
        order = sorted(range(len(of_status)), key=lambda i: (first[of_status[i].class_name] != i, i))
        chosen += [of_status[i] for i in order[:count]]
    return chosen


def _describe(
    folder: RunFolder, config: Config, sites: Sites, datalists: Mapping[str, Datalist], federation: Federation
) -> None:
    step_total = config.rounds * config.train.local_steps * len(datalists)
    methods = {"none": ["federated"], "local": ["federated", "local"]}.get(
        config.compare, ["federated", "fedavg", "local", "pooled"]
    )
    folder.write_run_info(
        text_encoder=federation.text.encoder,
        text_hash=federation.text.hash,
        generated=sites.is_generated,
        scan_backend=scan_backend("cpu", config.model.scan_backend),
        parameters=sum(p.numel() for p in federation.model.parameters()),
        classes={info.name: {"kind": info.kind.value} for info in federation.text.classes},
        sites={s: {"cases": len(d.annotated_cases), "classes": _annotated_classes(d)} for s, d in datalists.items()},
        methods={
            name: {"steps_total": step_total, "rounds": config.rounds * (len(datalists) if name == "pooled" else 1)}
            for name in methods
        },
    )


def _annotated_classes(datalist: Datalist) -> dict[str, int]:
    return {name: count for name, count in datalist.evidence().items() if count}


def _everywhere(model: DSM, sites: Sites) -> dict[str, DSM]:
    return dict.fromkeys(sites.folders, model)


def _save(path: Path, federation: Federation, state: ServerState, chosen_by: str) -> None:
    extra = {"round": state.round, "chosen_by": chosen_by, "seed": federation.config.seed}
    save_checkpoint(path, federation.model_of(state), federation.config, federation.text, extra)


def _print_plan(config: Config, sites: Sites, datalists: Mapping[str, Datalist]) -> None:
    for site, datalist in datalists.items():
        classes = ", ".join(f"{name} ({count})" for name, count in _annotated_classes(datalist).items())
        held = len(sites.held_out[site].annotated_cases)
        tqdm.write(f"{site}: {len(datalist.annotated_cases)} cases, {held} held out; labels {classes}")
    steps = config.rounds * config.train.local_steps
    tqdm.write(
        f"{config.rounds} rounds x {config.train.local_steps} steps x {len(datalists)} sites = "
        f"{steps * len(datalists)} optimiser steps a method; compare={config.compare}; "
        f"{torch.get_num_threads()} threads; scan backend {scan_backend('cpu', config.model.scan_backend)}"
    )


def _folder(key: str, value: str) -> Path:
    path = Path(value)
    if not path.is_dir():
        raise ConfigError(f"{key}={value} is no folder; give a folder of site folders, each with a dataset.json")
    return path


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - started
