"""Where do a simulation's sites come from: generated phantoms, or the user's own folders, checked before round 1."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from client.ledger import LEDGER_NAME
from client.training import open_datalist
from dsm_core.config import Config, ConfigError
from dsm_core.data import Datalist, DatalistError, check_folder, read_datalist, site_folders
from dsm_core.stages import total_rounds
from simulations.matrix import held_out_datalists
from simulations.sites import generate_sites, phantom_recipe

HELD_OUT = 0.2  # share of each site's cases that is scored when no eval_dir is given


def with_held_out(config: Config) -> Config:
    """The configuration, with cases of the user's own sites held out where nothing else could be scored."""
    if config.sites_dir and not config.eval_dir and not config.data.held_out:
        return replace(config, data=replace(config.data, held_out=HELD_OUT))
    return config


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


def find_sites(config: Config) -> Sites:
    """The sites of a run: the user's folders, or generated ones (kept and found again by their recipe).

    Raises:
        ConfigError: `sites_dir` or `eval_dir` is no folder, or holds no site; a site has too few patients for a step
            of private training, or one with a ledger that would train without privacy.
        DatalistError: a site's folder has faults; those of all sites at once.
    """
    if config.sites_dir is None:
        refuse_large_batches(config)
        root = Path(config.out) / "sites" / f"seed{config.seed}-sites{config.sites}-{_recipe_hash(config)}"
        with tqdm(desc="generating sites", unit="case", leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            made = generate_sites(root, config.sites, config.phantom, config.seed, show)
        refuse_large_batches(config, made.folders)
        return Sites(made.folders, held_out_datalists(config, made.folders, root / "eval"), True)
    root = _folder("sites_dir", config.sites_dir)
    folders = {path.name: path for path in site_folders(root)}
    if not folders:
        raise ConfigError(f"sites_dir={config.sites_dir} holds no site: no sub-folder has a dataset.json")
    eval_dir = None if config.eval_dir is None else _folder("eval_dir", config.eval_dir)
    held_out = held_out_datalists(config, folders, eval_dir)
    inspect_sites(folders | {f"eval of {site}": held.root for site, held in held_out.items() if eval_dir})
    _refuse_training_cases(folders, held_out if eval_dir else {})
    _refuse_open_training(config, folders)
    refuse_large_batches(config, folders)
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


def _refuse_open_training(config: Config, folders: Mapping[str, Path]) -> None:
    """A site with a ledger in its folder trains privately or not at all, and what compares with it does not."""
    held = [site for site, folder in folders.items() if os.path.lexists(folder / LEDGER_NAME)]
    trains_openly = config.compare != "none" or (config.privacy.mode == "none" and total_rounds(config) > 0)
    if held and trains_openly:
        raise ConfigError(
            f"{', '.join(held)}: a privacy ledger lies in the folder, so the site trains privately only; found "
            f"privacy.mode={config.privacy.mode} and compare={config.compare}, wanted dp_sgd and none; or give a copy "
            f"of the folder without it"
        )


def refuse_large_batches(config: Config, folders: Mapping[str, Path] | None = None) -> None:
    """Under privacy a step draws `train.batch` patients on average, so every site must have as many.

    Args:
        folders: site -> folder; None: sites that are still to be generated.

    Raises:
        ConfigError: sites with fewer; all of them at once.
    """
    if config.privacy.mode == "none":
        return
    patients = {"a generated site": config.phantom.cases} if folders is None else _patients(folders, config)
    if few := [f"{site} has {count}" for site, count in patients.items() if count < config.train.batch]:
        remedy = "lower train.batch" if folders else "lower train.batch or raise phantom.cases"
        raise ConfigError(
            f"train.batch={config.train.batch} patients take part in a private step, and {', '.join(few)}; {remedy}"
        )


def _patients(folders: Mapping[str, Path], config: Config) -> dict[str, int]:
    from client.privacy.patients import Patients  # Opacus takes seconds to import

    return {site: len(Patients.of(open_datalist(folder, config), 0)) for site, folder in folders.items()}


def _recipe_hash(config: Config) -> str:
    return hashlib.sha256(json.dumps(phantom_recipe(config.phantom), sort_keys=True).encode()).hexdigest()[:8]


def _folder(key: str, value: str) -> Path:
    path = Path(value)
    if not path.is_dir():
        raise ConfigError(f"{key}={value} is no folder; give a folder of site folders, each with a dataset.json")
    return path
