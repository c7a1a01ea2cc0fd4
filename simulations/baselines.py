"""What the federation is measured against: every site alone, and all data in one place, with as many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.trainer import Arrays, StepSeed, Trainer, learning_rate, load_arrays
from client.training import open_datalist
from dsm_core.config import Config
from dsm_core.data import Datalist, SiteVolumes
from dsm_core.model import DSM, build_model
from dsm_core.objectives import FrozenMaps, SiteObjective, make_objective
from dsm_core.stages import MOVING, stages_of
from dsm_core.text_space import TextSpace
from server.members import EVIDENCE

OnRound = Callable[[str, str, dict[str, Any]], None]  # method, site, and the round's number, stage and loss


class PooledObjective:
    """One stage on the scans of all sites in one place: every sample from a site drawn evenly.

    What a sample's own site does not label is unknown in it.

    Args:
        objectives: of the sites that have something to teach in the stage, all with the same model.
    """

    def __init__(self, objectives: Sequence[SiteObjective]):
        self.objectives = objectives
        self.trained, self.batch = objectives[0].trained, objectives[0].batch
        self.rows = tuple(sorted({name for objective in objectives for name in objective.rows}))

    def sample(self, draw: np.random.Generator, batch: int) -> Any:
        places = [int(draw.integers(len(self.objectives))) for _ in range(batch)]
        return self.objectives[0].join([self.objectives[place].sample(draw, 1) for place in places])

    def losses(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objectives[0].losses(batch, generator)

    def model_changed(self) -> None:
        for objective in self.objectives:
            objective.model_changed()


def train_baselines(
    config: Config,
    datalists: Mapping[str, Datalist],
    text: TextSpace,
    start: Arrays,
    pooled: bool,
    on_round: OnRound,
) -> dict[str, dict[str, DSM]]:
    """Models by method and site: `local` (one a site, its own share of the steps) and, if asked, `pooled` (all steps).

    Each goes through the stages of the run, with as many steps in each; a site that has labelled nothing of what a
    stage trains leaves it out, as it does in the federation.

    Args:
        start: the tensors from which the federation starts too.
        on_round: called after every `local_steps` steps, from several threads.
    """
    volumes = {site: SiteVolumes(datalist, config.data) for site, datalist in datalists.items()}

    def train(method: str, name: str, sites: Sequence[str]) -> DSM:
        if workers > 1:
            torch.set_num_threads(1)
        model = build_model(config.model, text)
        cases = [sum(datalists[site].evidence().get(n, 0) for site in sites) for n in text.names]
        load_arrays(model, {**start, EVIDENCE: np.array(cases, np.float32)})
        maps = {site: FrozenMaps(model, text, volumes[site], config.data) for site in sites}
        done = 0
        for stage in stages_of(config):
            found = [make_objective(stage.name, maps[site], datalists[site], config) for site in sites]
            teaching = [objective for objective in found if objective is not None]
            if not teaching:
                continue
            trainer = Trainer(model, teaching[0] if method == "local" else PooledObjective(teaching), config.train)
            trainer.objective.model_changed()
            rounds = stage.rounds * len(teaching)
            for round in range(1, rounds + 1):
                rate = learning_rate(stage.lr, config.train.warmup, round, rounds)
                seed = StepSeed(config.seed, name, done + round)
                losses = trainer.steps(config.train.local_steps, rate, seed)
                record = {"round": done + round, "stage": stage.name, "stage_round": round, "loss": losses["loss"]}
                on_round(method, name, record)
            done += rounds
        return model.eval()

    workers = config.threads or min(torch.get_num_threads(), len(datalists) + pooled)
    with ThreadPoolExecutor(workers) as pool:
        jobs = {("local", site): pool.submit(train, "local", site, [site]) for site in datalists}
        if pooled:
            jobs["pooled", "all"] = pool.submit(train, "pooled", "all", list(datalists))
        models = {key: job.result() for key, job in jobs.items()}
    trained: dict[str, dict[str, DSM]] = {"local": {site: models["local", site] for site in datalists}}
    if pooled:
        trained["pooled"] = dict.fromkeys(datalists, models["pooled", "all"])
    return trained


def rounds_at(config: Config, datalist: Datalist) -> int:
    """Rounds that a site takes part in: those of the stages that it has labelled something for."""
    kinds = {datalist.classes[name].kind for name in datalist.labelled_classes}
    return sum(stage.rounds for stage in stages_of(config) if MOVING[stage.name].is_taught_by(kinds))


def training_datalists(folders: Mapping[str, Path], config: Config) -> dict[str, Datalist]:
    """The cases that each site trains on, as the site itself chooses them."""
    return {site: open_datalist(folder, config) for site, folder in folders.items()}
