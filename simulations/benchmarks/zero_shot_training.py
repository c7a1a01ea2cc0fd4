"""What does a seed of the zero-shot protocol train? One organ model and one prior, then tumour queries again and again.

Organ model and prior see no tumour annotation at all, so every leave-out may share them. Training is pooled, on the
scans of all sites with each site's own labels; batches, losses and optimiser are those of a federated run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from client.trainer import StepSeed, Trainer, learning_rate
from dsm_core.classes import ATLAS
from dsm_core.config import Config
from dsm_core.data import Datalist, SiteVolumes, read_datalist
from dsm_core.data.phantoms import PHANTOM_CLASSES, PHANTOM_LESIONS, PHANTOM_ORGANS
from dsm_core.model import DSM, VisualPrompt, build_model
from dsm_core.objectives import FrozenMaps, make_objective
from dsm_core.scan_reading import padded
from dsm_core.stages import ORGANS, PRIOR, STAGES, TUMORS
from dsm_core.text_space import TextSpace
from simulations.baselines import PooledObjective
from simulations.sites import SITE_CLASSES, GeneratedSites, generate_sites, site_name

Say = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """Optimiser steps of each stage, of all sites together, and the cases of a site."""

    steps: Mapping[str, int]
    cases: int
    held_out: int


@dataclass(frozen=True)
class HeldOutCase:
    """A case that is scored: the frozen model's view of it, with and without the prior, and the truth.

    Attributes:
        prompts: by whether the prior is used; float16.
        label: (1, X, Y, Z), padded.
    """

    prompts: dict[bool, VisualPrompt]
    label: torch.Tensor
    datalist: Datalist


class Seed:
    """Sites, organ model and prior of one seed; `tumor_queries` trains on from there."""

    def __init__(self, config: Config, text: TextSpace, budget: Budget, say: Say) -> None:
        self.config, self.text, self.budget, self._say = config, text, budget, say
        sites = generated(config, budget)
        self.datalists = {site: read_datalist(folder) for site, folder in sites.folders.items()}
        self._volumes = {site: SiteVolumes(held, config.data) for site, held in self.datalists.items()}
        torch.manual_seed(config.seed)
        self.model = build_model(config.model, text)
        known = set(text.names) & set(PHANTOM_ORGANS)
        for name in known:
            self.model.class_rows.evidence[text.index(name)] = 1.0
        self._maps = {site: FrozenMaps(self.model, text, held, config.data) for site, held in self._volumes.items()}
        own = dict(zip(sites.folders, SITE_CLASSES, strict=True))
        organs = {site: [name for name in own[site] if name in known] for site in own}
        self._train(ORGANS, self.model, self._maps, organs)
        untrained = copy.deepcopy(self.model.prior.state_dict())
        self._train(PRIOR, self.model, self._maps, organs)
        trained = copy.deepcopy(self.model.prior.state_dict())
        self._priors = {False: untrained, True: trained}
        say("held-out cases")
        self.held_out = [case for folder in sites.held_out.values() for case in self._read(folder)]

    def _read(self, folder: Path) -> list[HeldOutCase]:
        datalist = read_datalist(folder)
        maps = FrozenMaps(self.model, self.text, SiteVolumes(datalist, self.config.data), self.config.data)
        found: list[dict[bool, VisualPrompt]] = [{} for _ in datalist.cases]
        for uses_prior, state in self._priors.items():
            self.model.prior.load_state_dict(state)
            maps.model_changed()
            for place, prompts in enumerate(found):
                prompts[uses_prior] = maps.prompt(place)
        labels = [padded(volume.label, self.config.data.patch) for volume in maps.volumes if volume.label is not None]
        return [HeldOutCase(prompts, label, datalist) for prompts, label in zip(found, labels, strict=True)]

    def tumor_queries(self, labelled: Collection[str], uses_prior: bool = True) -> DSM:
        """A model whose tumour queries were trained on these lesions, annotated at every site; on no other."""
        self._say(f"tumours: {', '.join(sorted(labelled))}" + ("" if uses_prior else ", no diffusion"))
        self.model.prior.load_state_dict(self._priors[uses_prior])
        torch.manual_seed(self.config.seed)
        fresh = build_model(self.config.model, self.text).state_dict()
        self.model.load_state_dict({name: value for name, value in fresh.items() if name.startswith("tumors.")}, False)
        rows = self.model.class_rows.residual.weight.data
        rows[[i for i, name in enumerate(self.text.names) if name in PHANTOM_LESIONS]] = 0
        for maps in self._maps.values():
            maps.model_changed()
        self._train(TUMORS, self.model, self._maps, {site: list(labelled) for site in self.datalists})
        return self.model

    def _train(self, stage: str, model: DSM, maps: Mapping[str, FrozenMaps], names: Mapping[str, list[str]]) -> None:
        """`steps` optimiser steps on all sites at once; a site's cases annotate these classes only."""
        config = self.config
        if stage != TUMORS:
            self._say(stage)
        lr = {ORGANS: config.train.lr, PRIOR: config.prior.lr, TUMORS: config.tumors.lr}[stage]
        found = [
            make_objective(stage, maps[site], only(held, names[site]), config) for site, held in self.datalists.items()
        ]
        trainer = Trainer(model, PooledObjective([one for one in found if one is not None]), config.train)
        trainer.objective.model_changed()
        rounds = max(1, self.budget.steps[stage] // config.train.local_steps)
        # As many sites as here take one step together in a run, at the rate of a batch as large.
        rate = lr * len(found) ** 0.5
        for round in range(1, rounds + 1):
            seed = StepSeed(config.seed, f"all, {STAGES.index(stage)}", round)
            trainer.steps(config.train.local_steps, learning_rate(rate, config.train.warmup, round, rounds), seed)


def generated(config: Config, budget: Budget) -> GeneratedSites:
    """The sites of a seed, every class labelled everywhere; kept, and found again. Not to be made by two at a time."""
    phantom = replace(config.phantom, cases=budget.cases, held_out=budget.held_out)
    everything = {site_name(place): PHANTOM_CLASSES for place in range(len(SITE_CLASSES))}
    shapes = "drawn" if phantom.lesion_shapes is None else "real"
    root = Path(config.out) / "sites" / f"zero-shot-{config.seed}-{budget.cases}-{budget.held_out}-{shapes}"
    return generate_sites(root, len(everything), phantom, config.seed, classes=everything)


def only(datalist: Datalist, names: Collection[str]) -> Datalist:
    """The same cases, of which only these classes are known."""
    cases = (replace(case, annotated=tuple(n for n in case.annotated if n in names)) for case in datalist.cases)
    return replace(datalist, cases=tuple(cases))


def hosts() -> dict[str, str]:
    """Each tumour of generated patients and the organ it grows in."""
    return {name: str(ATLAS[name].host) for name in PHANTOM_LESIONS}


def wrong_organs(known: Collection[str] = PHANTOM_ORGANS) -> list[str]:
    """Organs in which no generated patient has a tumour, of those that the text space knows."""
    return [name for name in PHANTOM_ORGANS if name in known and name not in hosts().values()]


def draw_shuffled(names: Collection[str], seed: int) -> dict[str, str]:
    """Another name for each: a cycle through all of them, drawn from the seed."""
    order = np.random.default_rng(seed).permutation(sorted(names)).tolist()
    return dict(zip(order, [*order[1:], order[0]], strict=True))
