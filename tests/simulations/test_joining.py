"""A hospital joins a running federation with a class that nobody knew, and the class becomes a working query."""

import json

import nibabel as nib
import numpy as np
import pytest

from client.app import app
from dsm_core.config_words import compose_config
from dsm_core.inference import Predictor
from server.federation import open_federation
from simulations.grid import run_in_process

SMALL = [
    "train.local_steps=3", "train.batch=2", "train.lr=5e-3", "data.spacing_mm=[8,8,8]", "data.patch=[32,32,32]",
    "model.widths=[8,8,16,16]", "model.mamba_blocks=[0,0,0,1]", "model.decoder_width=16", "model.query_width=16",
    "model.mask_width=8", "text.encoder=offline",
]  # fmt: skip
ROUNDS, JOINS = 60, 10
HU = {"liver": 220.0, "bladder": -150.0}


def draw_case(draw):
    """A scan with a bright liver and a dark bladder, and the boxes that they fill."""
    image = draw.normal(30, 10, (32, 32, 32))
    boxes = {}
    for half, (name, value) in enumerate(HU.items()):
        low = draw.integers(2, 6, 3) + np.array([14 * half, 0, 0])
        boxes[name] = tuple(slice(start, start + 9) for start in low)
        image[boxes[name]] += value
    return image.astype(np.float32), boxes


def make_site(root, name, labelled, cases=4):
    draw = np.random.default_rng([ord(name[0])])
    for part in ("imagesTr", "labelsTr"):
        (root / name / part).mkdir(parents=True)
    for case in range(cases):
        image, boxes = draw_case(draw)
        mask = np.zeros(image.shape, np.int16)
        mask[boxes[labelled]] = 1
        for part, array in (("imagesTr", image), ("labelsTr", mask)):
            nib.save(nib.Nifti1Image(array, np.diag([8, 8, 8, 1.0])), root / name / part / f"case_{case}.nii.gz")
    content = {"labels": {"background": 0, labelled: 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (root / name / "dataset.json").write_text(json.dumps(content))
    return root / name


def federated(sites, config):
    """States by round and the federation; the second site connects when JOINS rounds are done."""
    states = {}

    def serve(grid, context):
        nodes = grid.get_node_ids()
        grid.get_node_ids = lambda: nodes[: 2 if JOINS in states else 1]
        federation = open_federation(grid, config, sites=1)
        states[0] = federation.state
        federation.run(grid, lambda round, record, state: states.update({round: state}))
        return federation

    return run_in_process(serve, app, sites, threads=1), states


def dice(found, boxes, name):
    truth = np.zeros(found.shape, bool)
    truth[boxes[name]] = True
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.mark.slow
def test_class_that_joined_on_the_way_is_found_and_the_old_one_still_is(tmp_path):
    config = compose_config([*SMALL, f"rounds={ROUNDS}", "prior.rounds=0", "tumors.rounds=0"])
    sites = [make_site(tmp_path, "north", "liver"), make_site(tmp_path, "east", "bladder")]
    federation, states = federated(sites, config)
    assert states[JOINS].classes == ("liver",)
    assert states[ROUNDS].classes == federation.text.names == ("bladder", "liver")
    joined = [record for record in states[ROUNDS].history if "joined" in record]
    assert [record["joined"] for record in joined] == [{"east": ["bladder"]}]
    image, boxes = draw_case(np.random.default_rng(99))
    nib.save(nib.Nifti1Image(image, np.diag([8, 8, 8, 1.0])), tmp_path / "scan.nii.gz")
    scores = []
    for state in (states[JOINS], states[ROUNDS]):  # a state from before the newcomer has no row for its class
        predictor = Predictor(federation.model_of(state), federation.text, config.data)
        masks = predictor.predict(tmp_path / "scan.nii.gz", list(HU)).masks
        scores.append({name: dice(mask.numpy(), boxes, name) for name, mask in zip(HU, masks, strict=True)})
    assert scores[0]["bladder"] < 0.3, scores
    assert min(scores[1].values()) > 0.5, scores
