"""What the federation is measured against: every site alone, and all data in one place, with as many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from client.trainer import Arrays, Sampler, StepSeed, Trainer, learning_rate
from client.training import open_datalist
from dsm_core.config import Config
from dsm_core.data import Datalist, PatchBatch, PatchSampler, SiteVolumes
from dsm_core.model import DSM, build_model
from dsm_core.text_space import TextSpace

OnRound = Callable[[str, str, int, float], None]  # method, site, round, loss


class PooledSampler:
    """Patches of all sites in one place: every patch from a site drawn evenly, unlabelled classes marked unknown."""

    def __init__(self, samplers: Sequence[PatchSampler], names: tuple[str, ...]):
        self.samplers, self.names = samplers, names

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch:
        """`batch` patches; masks and `annotated` over the classes of all sites."""
        parts = [self.samplers[int(generator.integers(len(self.samplers)))].sample(generator, 1) for _ in range(batch)]
        image = torch.cat([part.image for part in parts])
        masks = torch.zeros(batch, len(self.names), *image.shape[2:], dtype=torch.bool)
        annotated = torch.zeros(batch, len(self.names), dtype=torch.bool)
        for i, part in enumerate(parts):
            rows = [self.names.index(name) for name in part.names]
            masks[i, rows], annotated[i, rows] = part.masks[0], part.annotated[0]
        return PatchBatch(image, masks, annotated, self.names)


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
    samplers = {
        site: PatchSampler(SiteVolumes(datalist, config.data), datalist, config.data)
        for site, datalist in datalists.items()
    }

    def train(method: str, site: str, sampler: Sampler, names: tuple[str, ...], cases: Mapping[str, int]) -> DSM:
        if workers > 1:
            torch.set_num_threads(1)
        rounds = config.rounds * (len(datalists) if method == "pooled" else 1)
        model = build_model(config.model, text)
        trainer = Trainer(model, text, config.train, names)
        trainer.load({**start, "class_rows.evidence": np.array([cases.get(n, 0) for n in text.names], np.float32)})
        for round in range(1, rounds + 1):
            rate = learning_rate(config.train.lr, config.train.warmup, round, rounds)
            losses = trainer.steps(sampler, config.train.local_steps, rate, StepSeed(config.seed, site, round))
            on_round(method, site, round, losses["loss"])
        return model.eval()

    workers = config.threads or min(torch.get_num_threads(), len(datalists) + pooled)
    labelled = tuple(n for n in text.names if any(n in d.labelled_classes for d in datalists.values()))
    with ThreadPoolExecutor(workers) as pool:
        jobs = {}
        if pooled:
            together = PooledSampler(list(samplers.values()), labelled)
            evidence = {n: sum(d.evidence().get(n, 0) for d in datalists.values()) for n in labelled}
            jobs["pooled", "all"] = pool.submit(train, "pooled", "all", together, labelled, evidence)
        for site, datalist in datalists.items():
            names = datalist.labelled_classes
            jobs["local", site] = pool.submit(train, "local", site, samplers[site], names, datalist.evidence())
        models = {key: job.result() for key, job in jobs.items()}
    trained: dict[str, dict[str, DSM]] = {"local": {site: models["local", site] for site in datalists}}
    if pooled:
        trained["pooled"] = dict.fromkeys(datalists, models["pooled", "all"])
    return trained


def training_datalists(folders: Mapping[str, Path], config: Config) -> dict[str, Datalist]:
    """The cases that each site trains on, as the site itself chooses them."""
    return {site: open_datalist(folder, config) for site, folder in folders.items()}
