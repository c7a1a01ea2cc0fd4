"""The stages of a simulation: sites, rounds, baselines, matrix, report; each timed and written down as it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dsm_core.checkpoint import save_checkpoint
from dsm_core.config import Config, ServerConfig
from dsm_core.data import Datalist
from dsm_core.evaluation import MatrixRow
from dsm_core.model import DSM
from dsm_core.model.selective_scan import scan_backend
from dsm_core.stages import stages_of, total_rounds
from server.federation import Federation
from server.record import rewind_history
from server.resume import forget_state, remember_config
from server.start import read_start
from server.waiting import mark_finished
from simulations.baselines import rounds_at, train_baselines, training_datalists
from simulations.federated import federate
from simulations.matrix import score_method
from simulations.overlays import Overlay, save_overlays
from simulations.provenance import portable_word
from simulations.report import write_report
from simulations.results import RunFolder
from simulations.site_sources import Sites, find_sites, with_held_out
from strategies.query_fedavg import ServerState


def simulate(config: Config, command: Sequence[str], resume: Path | None = None) -> Path | None:
    """Run everything that a configuration asks for.

    Args:
        resume: folder of a run that was stopped. Its federated runs go on from their last states, bit for bit; what
            comes after them begins anew.

    Returns:
        The report's path; None after a dry run, which writes no run folder.
    """
    config = with_held_out(config)
    seconds: dict[str, float] = {}
    start = read_start(config)
    with _timed(seconds, "sites"):
        sites = find_sites(config)
    datalists = training_datalists(sites.folders, config)
    _print_plan(config, sites, datalists)
    if config.dry_run:
        return None
    folder = _open_folder(config, command, resume)
    classes = [info for datalist in sites.held_out.values() for info in datalist.classes.values()]
    with _timed(seconds, "federated", folder.seconds_of("federated")):
        federation, state, best = federate(config, "federated", sites, classes, folder)
    _describe(folder, config, sites, datalists, federation)
    if start is not None:
        folder.write_run_info(start={"checkpoint": portable_word(f"{config.start}"), **start.extra})
    folder.write_run_info(seconds=seconds)
    _save(folder.last_checkpoint, federation, state, "last round")
    _save(folder.best_checkpoint, federation, best, "lowest smoothed training loss of the last stage")
    models = {"federated": _everywhere(federation.model_of(state), sites)}
    if config.compare == "all":
        with _timed(seconds, "fedavg", folder.seconds_of("fedavg")):
            plain = replace(config, server=plain_fedavg(config))
            other, state, _ = federate(plain, "fedavg", sites, classes, folder)
            models["fedavg"] = _everywhere(other.model_of(state), sites)
    if config.compare != "none":
        with _timed(seconds, "baselines"):
            models |= baselines_beside(config, datalists, federation, folder)
    with _timed(seconds, "scoring"):
        _score(config, sites, datalists, federation, models, folder)
    folder.write_run_info(seconds=seconds, finished=True)
    folder.close()
    report = write_report(folder.path)
    forget_state(folder.path)
    mark_finished(folder.path)
    return report


def _open_folder(config: Config, command: Sequence[str], resume: Path | None) -> RunFolder:
    if resume is None:
        folder = RunFolder.create(config.out, config.name, config, list(command))
        remember_config(folder.path, config)
        return folder
    for method in ("local", "pooled"):  # these begin anew
        rewind_history(resume, method, 0)
    return RunFolder.create(resume.parent, resume.name, config, list(command), resume=True)


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


def baselines_beside(
    config: Config, datalists: Mapping[str, Datalist], federation: Federation, folder: RunFolder
) -> dict[str, dict[str, DSM]]:
    """Models by method and site of what a federation is compared with; their rounds are shown and logged."""
    pooled = config.compare == "all"
    together = sum(rounds_at(config, datalist) for datalist in datalists.values())
    lock = threading.Lock()
    with tqdm(
        total=together * (2 if pooled else 1), desc="local and pooled" if pooled else "local", unit="round"
    ) as bar:

        def on_round(method: str, site: str, record: dict[str, Any]) -> None:
            with lock:
                losses = {site: record["loss"]} if method == "local" else {}
                rounds = together if method == "pooled" else rounds_at(config, datalists[site])
                folder.log_round(method, {**record, "rounds": rounds, "site_losses": losses})
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
    together = sum(rounds_at(config, datalist) for datalist in datalists.values())
    rounds = {"pooled": together}
    steps = {"steps_total": together * config.train.local_steps}
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
        methods={name: {**steps, "rounds": rounds.get(name, total_rounds(config))} for name in methods},
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
    stages = ", ".join(f"{stage.name} {stage.rounds}" for stage in stages_of(config)) or "none"
    steps = config.train.local_steps * sum(rounds_at(config, datalist) for datalist in datalists.values())
    tqdm.write(
        f"rounds: {stages}; {config.train.local_steps} steps a round at every site that can teach the stage = {steps} "
        f"optimiser steps a method; compare={config.compare}; {torch.get_num_threads()} threads; "
        f"scan backend {scan_backend('cpu', config.model.scan_backend)}"
    )
    if config.privacy.mode != "none":
        tqdm.write(
            f"private: epsilon {config.privacy.epsilon:g} for every patient of a site over the whole run, about "
            f"{config.train.batch} patients a step; trained: {config.privacy.trained}. A ledger of each site: "
            f"ledgers/federated in the run's folder, or the site's own"
            + ("" if config.compare == "none" else "; local and pooled training beside it is not private")
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str, spent_s: float = 0.0) -> Iterator[None]:
    started = time.monotonic() - spent_s
    yield
    seconds[stage] = time.monotonic() - started
