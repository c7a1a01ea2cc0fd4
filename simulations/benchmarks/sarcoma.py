"""Real CT: is a sarcoma found that one site alone has labelled, among sites of another body part?

python -m simulations.benchmarks.sarcoma                     ../shared/data/head_neck with ../shared/data/sarcoma/site_e
python -m simulations.benchmarks.sarcoma --quick             one seed and few rounds, to see that it works

Five sites train together; four of them label organs of head and neck, and a radiotherapy target. A third of each site's
cases is held out. The sarcoma scans are cut out around the tumour, so that an ellipsoid in the middle is no bad guess:
scored are boxes that do not lie around it, beside that ellipsoid and the best window of HU, both fitted on the training
cases, and beside plain FedAvg, the sarcoma's own site alone and pooled training, with as many steps as the federation.
A sarcoma has no host organ, and these scans show no organ that any site has labelled.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config
from dsm_core.data import Datalist, DatalistError, Volume, class_masks, load_volume
from dsm_core.model import DSM
from dsm_core.text_space import TextSpace
from dsm_core.volume_answers import predict_volume
from simulations.baselines import training_datalists
from simulations.benchmarks.detection_rows import Tally, over_seeds
from simulations.benchmarks.sarcoma_guesses import Method, ellipsoid, window
from simulations.benchmarks.table import Check, Row, write_benchmark
from simulations.federated import federate
from simulations.results import RunFolder
from simulations.site_sources import Sites, find_sites
from simulations.stages import baselines_beside, plain_fedavg

SARCOMA = "soft tissue sarcoma"
HEAD_NECK, SARCOMA_SITE = Path("../shared/data/head_neck"), Path("../shared/data/sarcoma/site_e")
FULL = ("rounds=40", "prior.rounds=40", "tumors.rounds=150", "data.held_out=0.34")
QUICK = ("rounds=4", "prior.rounds=2", "tumors.rounds=15", "data.held_out=0.34")
SEEDS = (0, 1, 2)
FEDERATED, PLAIN, LOCAL, POOLED = "federated", "plain FedAvg", "its site alone", "pooled"
MEASURES = ("auroc_whole", "fpr95_whole", "dice", "nsd", "sensitivity")
BOXES, BOX_SHARE = 4, 0.7  # boxes of a scan, and their edge as a share of the scan's
_OFF_CENTRE, _MOST_HIDDEN = 0.15, 0.5  # least shift of the tumour, in edges; share of it that a box may cut off


@dataclass(frozen=True)
class Box:
    """A part of a held-out scan, on the working grid: image (1, X, Y, Z), truth (X, Y, Z)."""

    image: Tensor
    truth: Tensor


def off_centre_boxes(volume: Volume, truth: Tensor, draw: np.random.Generator) -> Iterator[Box]:
    """Boxes in which the tumour lies off the middle; fewer than `BOXES` where it fills the scan."""
    size = np.array(truth.shape)
    edge = np.maximum(1, (size * BOX_SHARE).astype(int))
    centroid = truth.nonzero().double().mean(0).numpy()
    found = 0
    for _ in range(200):
        start = draw.integers(0, size - edge + 1)
        part = tuple(slice(int(s), int(s + e)) for s, e in zip(start, edge, strict=True))
        inside = truth[part]
        shift = np.abs((centroid - start - edge / 2) / edge).max()
        if shift >= _OFF_CENTRE and inside.sum() >= _MOST_HIDDEN * truth.sum():
            yield Box(volume.image[(slice(None), *part)], inside)
            found += 1
        if found == BOXES:
            return


def score(method: Method, boxes: Sequence[Box], config: Config) -> Row:
    """Every measure over boxes; there is no host, so the whole box stands for it."""
    tally = Tally(config.data.spacing_mm, config.nsd_tolerance_mm)
    for box in boxes:
        found, mask = method(box.image)
        tally.add(found, mask, box.truth, torch.ones_like(box.truth), None)
    row = tally.row()
    return {name: row[name] for name in (*MEASURES, "cases")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every check holds, 1 when one fails, 2 on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("python -m simulations.benchmarks.sarcoma", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few rounds")
    parser.add_argument("--seeds", metavar="N,N", type=_numbers, help="0,1,2 where nothing is said")
    parser.add_argument("--head-neck", metavar="DIR", type=Path, default=HEAD_NECK, help="folder of the other sites")
    parser.add_argument("--sarcoma", metavar="DIR", type=Path, default=SARCOMA_SITE, help="folder of the sarcoma site")
    options, overrides = parser.parse_known_args(words)
    try:
        for folder in (options.head_neck, options.sarcoma):
            if not folder.is_dir():
                raise ConfigError(f"no folder {folder}; give --head-neck and --sarcoma")
        with tempfile.TemporaryDirectory() as linked:
            places = [*sorted(options.head_neck.glob("site_*")), options.sarcoma]
            for place in places:
                (Path(linked) / place.name).symlink_to(place.resolve())
            preset = QUICK if options.quick else FULL
            config = compose_config([*preset, "compare=all", f"sites_dir={linked}", *overrides])
            by_seed, encoder = [], ""
            for seed in options.seeds or (SEEDS[:1] if options.quick else SEEDS):
                found, encoder = run(replace(config, seed=seed), options.sarcoma.name)
                by_seed += [{"seed": seed, **row} for row in found]
    except (ConfigError, DatalistError) as error:
        print(f"sarcoma: {error}", file=sys.stderr)
        return 2
    rows = over_seeds(by_seed, ("method", "boxes"), MEASURES)
    dice = {row["method"]: row["dice"] for row in rows if row["boxes"] == "off centre"}
    checks = [
        Check.at_least(f"Dice off centre above {other}", dice[FEDERATED] - dice[other], 1e-9)
        for other in dice
        if other not in (FEDERATED, POOLED)
    ]
    write_benchmark(
        "sarcoma",
        rows,
        checks,
        command=["python", "-m", "simulations.benchmarks.sarcoma", *words],
        config=replace(config, sites_dir=None),
        text_encoder=encoder,
        stages={"organs": config.rounds, "prior": config.prior.rounds, "tumors": config.tumors.rounds},
        by_seed=by_seed,
    )
    return 0 if all(check.ok for check in checks) else 1


def run(config: Config, site: str) -> tuple[list[Row], str]:
    """Train everything from one seed and score it on the held-out cases of a site; rows and the text encoder."""
    sites = find_sites(config)
    datalists = training_datalists(sites.folders, config)
    models, text = train(config, sites, datalists, site)
    training = list(_volumes(datalists[site], config))
    held_out = list(_volumes(sites.held_out[site], config))
    methods: dict[str, Method] = {
        **{name: asking(model, text, config) for name, model in models.items()},
        "ellipsoid": ellipsoid([_extent(truth) for _, truth in training]),
        "HU window": window([volume.image for volume, _ in training], [truth for _, truth in training]),
    }
    draw = np.random.default_rng(config.seed)
    boxes = {
        "centred": [Box(volume.image, truth) for volume, truth in held_out],
        "off centre": [box for volume, truth in held_out for box in off_centre_boxes(volume, truth, draw)],
    }
    rows: list[Row] = [
        {"method": name, "boxes": kind, **score(method, found, config)}
        for kind, found in boxes.items()
        for name, method in methods.items()
    ]
    return rows, text.encoder


def train(
    config: Config, sites: Sites, datalists: Mapping[str, Datalist], site: str
) -> tuple[dict[str, DSM], TextSpace]:
    """The federation's model, and those of the baselines that a site would ask instead."""
    folder = RunFolder.create(config.out, config.name, replace(config, sites_dir=None), ["sarcoma"])
    classes = [info for datalist in sites.held_out.values() for info in datalist.classes.values()]
    federation, state, _ = federate(config, "federated", sites, classes, folder)
    plain = replace(config, server=plain_fedavg(config))
    other, other_state, _ = federate(plain, "fedavg", sites, classes, folder)
    alone = baselines_beside(config, datalists, federation, folder)
    folder.close()
    models = {
        FEDERATED: federation.model_of(state),
        PLAIN: other.model_of(other_state),
        LOCAL: alone["local"][site],
        POOLED: alone["pooled"][site],
    }
    return models, federation.text


def asking(model: DSM, text: TextSpace, config: Config) -> Method:
    """A model as a method: probability of a sarcoma, and the voxels that have one half or more."""
    queries = model.eval().query_set([SARCOMA], text)

    def ask(image: Tensor) -> tuple[Tensor, Tensor]:
        probability = predict_volume(model, image, queries, config.data).probabilities[0]
        return probability, probability >= 0.5

    return ask


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _volumes(datalist: Datalist, config: Config) -> Iterator[tuple[Volume, Tensor]]:
    for case in datalist.cases:
        volume = load_volume(case, config.data, datalist)
        assert volume.label is not None
        yield volume, class_masks(volume.label, (SARCOMA,), datalist)[0]


def _extent(truth: Tensor) -> np.ndarray:
    places = truth.nonzero()
    return ((places.amax(0) - places.amin(0) + 1) / torch.tensor(truth.shape)).numpy()


if __name__ == "__main__":
    sys.exit(main())
