"""How well can a tumour be found here at all? MONAI's U-Net, taught with every tumour labelled, on the zero-shot sites.

python -m simulations.benchmarks.lesion_peer             1500 steps of four crops for each, two processes; minutes
python -m simulations.benchmarks.lesion_peer --shapes DIR    the sites of `zero_shot --shapes DIR`

Two networks, trained on the same cases: one sees the scan alone, the other is given the true outline of every host
organ, tumours included, beside it. Both are judged inside the true host only, by the two measures of `zero_shot` that
are, on the same held-out cases. What lies between the networks is not hidden in the scan's grey values but in where an
organ ends, which a model has to find out for itself. Neither is asked in words.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from monai.data.utils import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd
from torch import Tensor, nn

from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config
from dsm_core.data import SiteVolumes, class_masks, read_datalist
from dsm_core.data.phantoms import PHANTOM_LESIONS
from simulations.benchmarks.detection_rows import Tally
from simulations.benchmarks.table import Row, write_benchmark
from simulations.benchmarks.zero_shot import FULL
from simulations.benchmarks.zero_shot_training import Budget, generated, hosts
from simulations.sites import SitesError

IMAGE_ALONE, TRUE_ORGANS = "scan alone", "scan and true organs"
STEPS, BATCH, LR = 1500, 4, 2e-3
SHOWN = ("auroc_host", "fpr95_host")
_CROP, _WIDTHS = (32, 32, 32), (16, 32, 64, 128, 128, 16)
Sample = dict[str, Any]


def run(config: Config, budget: Budget, method: str, steps: int) -> list[Row]:
    """Train one network and score it, class by class; one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    sites, started = generated(config, budget), time.monotonic()
    with_organs = method == TRUE_ORGANS
    cases = [sample for folder in sites.folders.values() for sample in samples(folder, config, with_organs)]
    network = BasicUNet(3, cases[0]["image"].shape[0], 1, features=_WIDTHS)
    train(network, cases, steps, config.seed, method)
    print(f"[{time.monotonic() - started:5.0f} s] {method}: scoring", flush=True)
    held_out = [sample for folder in sites.held_out.values() for sample in samples(folder, config, with_organs)]
    return [{"method": method, "class": name, **row} for name, row in score(network, held_out, config).items()]


def samples(folder: Path, config: Config, with_organs: bool) -> list[Sample]:
    """Every case of a site: `image` (1 or 1 + hosts, X, Y, Z), `label` (1, X, Y, Z) any tumour, `truth` by name."""
    datalist = read_datalist(folder)
    organs = tuple(sorted(set(hosts().values())))
    found = []
    for volume in SiteVolumes(datalist, config.data):
        assert volume.label is not None
        truth = {name: class_masks(volume.label, (name,), datalist)[0] for name in (*PHANTOM_LESIONS, *organs)}
        image = volume.image.float()
        if with_organs:
            image = torch.cat([image, torch.stack([truth[name].float() for name in organs])])
        tumors = torch.stack([truth[name] for name in PHANTOM_LESIONS]).any(0, keepdim=True)
        found.append({"image": image, "label": tumors.float(), "truth": truth})
    return found


def train(network: nn.Module, cases: Sequence[Sample], steps: int, seed: int, method: str) -> None:
    """Crops half around a tumour, mirrored; Dice and cross-entropy, AdamW with a rate that falls to nothing."""
    keys = ["image", "label"]
    augment = Compose(
        [
            RandCropByPosNegLabeld(keys, "label", _CROP, pos=1, neg=1, num_samples=1, allow_smaller=True),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    ).set_random_state(seed)
    draw = torch.Generator().manual_seed(seed)
    loss = DiceCELoss(sigmoid=True, weight=torch.tensor([3.0]))
    optimizer = torch.optim.AdamW(network.parameters(), LR)
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    for step in range(steps):
        chosen = torch.randint(len(cases), (BATCH,), generator=draw).tolist()
        batch = list_data_collate([augment({key: cases[place][key] for key in keys}) for place in chosen])
        optimizer.zero_grad(set_to_none=True)
        value = loss(network(batch["image"].as_tensor()), batch["label"].as_tensor())
        value.backward()
        optimizer.step()
        plan.step()
        if (step + 1) % 250 == 0:
            print(f"{method}: step {step + 1} of {steps}, loss {value.item():.2f}", flush=True)


def score(network: nn.Module, cases: Sequence[Sample], config: Config) -> dict[str, Row]:
    """A row of each tumour class: the map of any tumour, inside the host of that class."""
    network.eval()
    inferer = SlidingWindowInferer((64, 64, 64), mode="gaussian", overlap=0.25)
    tallies = {name: Tally(config.data.spacing_mm, config.nsd_tolerance_mm) for name in PHANTOM_LESIONS}
    for case in cases:
        with torch.no_grad():
            answer: Any = inferer(case["image"][None], network)
        values: Tensor = answer[0, 0]
        for name, tally in tallies.items():
            tally.add(values, values > 0, case["truth"][name], case["truth"][hosts()[name]], None)
    rows = {name: tally.row() for name, tally in tallies.items()}
    return {name: {key: row[key] for key in (*SHOWN, "cases")} for name, row in rows.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when the table was written, 2 on bad input. It promises nothing, so it checks nothing."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("python -m simulations.benchmarks.lesion_peer", description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", metavar="DIR", help="label maps whose tumours take the place of drawn ones")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps of {BATCH} crops")
    options, overrides = parser.parse_known_args(words)
    try:
        config = compose_config(overrides)
        if options.steps < 1:
            raise ConfigError(f"--steps wants at least 1, found {options.steps}")
        if options.shapes is not None:
            config = replace(config, phantom=replace(config.phantom, lesion_shapes=options.shapes))
        generated(config, FULL)
    except (ConfigError, SitesError) as error:
        print(f"lesion_peer: {error}", file=sys.stderr)
        return 2
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run, config, FULL, method, options.steps) for method in (IMAGE_ALONE, TRUE_ORGANS)]
        rows = [row for job in jobs for row in job.result()]
    write_benchmark(
        "lesion_peer" if options.shapes is None else "lesion_peer_shapes",
        rows,
        [],
        command=["python", "-m", "simulations.benchmarks.lesion_peer", *words],
        config=config,
        text_encoder="none: the peer is not asked in words",
        steps=options.steps,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
