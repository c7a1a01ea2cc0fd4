"""What the federation is measured against: every site alone, and all data in one place, with as many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.trainer import Arrays, StepSeed, Trainer, learning_rate
from client.training import open_datalist
from dsm_core.config import Config
from dsm_core.data import Datalist, SiteVolumes
from dsm_core.model import DSM, build_model
from dsm_core.objectives import FrozenMaps, Objective, SiteObjective, make_objective
from dsm_core.text_space import TextSpace

OnRound = Callable[[str, str, int, float], None]  # method, site, round, loss


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

    Args:
        start: the tensors from which the federation starts too.
        on_round: called after every `local_steps` steps, from several threads.
    """
    volumes = {site: SiteVolumes(datalist, config.data) for site, datalist in datalists.items()}

    def objective_of(site: str, model: DSM) -> SiteObjective:
        maps = FrozenMaps(model, text, volumes[site], config.data)
        objective = make_objective("organs", maps, datalists[site], config)
        assert objective is not None
        return objective

    def train(method: str, site: str, cases: Mapping[str, int]) -> DSM:
        if workers > 1:
            torch.set_num_threads(1)
        rounds = config.rounds * (len(datalists) if method == "pooled" else 1)
        model = build_model(config.model, text)
        objective: Objective
        if method == "pooled":
            objective = PooledObjective([objective_of(each, model) for each in datalists])
        else:
            objective = objective_of(site, model)
        trainer = Trainer(model, objective, config.train)
        trainer.load({**start, "class_rows.evidence": np.array([cases.get(n, 0) for n in text.names], np.float32)})
        for round in range(1, rounds + 1):
            rate = learning_rate(config.train.lr, config.train.warmup, round, rounds)
            losses = trainer.steps(config.train.local_steps, rate, StepSeed(config.seed, site, round))
            on_round(method, site, round, losses["loss"])
        return model.eval()

    workers = config.threads or min(torch.get_num_threads(), len(datalists) + pooled)
    with ThreadPoolExecutor(workers) as pool:
        jobs = {}
        if pooled:
            evidence = {n: sum(d.evidence().get(n, 0) for d in datalists.values()) for n in text.names}
            jobs["pooled", "all"] = pool.submit(train, "pooled", "all", evidence)
        for site, datalist in datalists.items():
            jobs["local", site] = pool.submit(train, "local", site, datalist.evidence())
        models = {key: job.result() for key, job in jobs.items()}
    trained: dict[str, dict[str, DSM]] = {"local": {site: models["local", site] for site in datalists}}
    if pooled:
        trained["pooled"] = dict.fromkeys(datalists, models["pooled", "all"])
    return trained


def training_datalists(folders: Mapping[str, Path], config: Config) -> dict[str, Datalist]:
    """The cases that each site trains on, as the site itself chooses them."""
    return {site: open_datalist(folder, config) for site, folder in folders.items()}
