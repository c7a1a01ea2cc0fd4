"""Does the peer of the zero-shot table see what it is said to see, and does it learn from it?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import BasicUNet

from dsm_core.config import Config, PhantomConfig
from dsm_core.data.phantoms import PHANTOM_CLASSES, PHANTOM_LESIONS
from simulations.benchmarks.lesion_peer import main, samples, score, train
from simulations.benchmarks.zero_shot_training import hosts
from simulations.sites import generate_sites


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    phantom = PhantomConfig(cases=1, held_out=1, size_mm=(240.0, 200.0, 200.0))
    return next(
        iter(
            generate_sites(
                tmp_path_factory.mktemp("peer"), 1, phantom, 0, classes={"site_a": PHANTOM_CLASSES}
            ).folders.values()
        )
    )


class Told(torch.nn.Module):
    """Is shown the truth and repeats it, as logits."""

    def forward(self, truth: torch.Tensor) -> torch.Tensor:
        return 10 * truth - 5


def test_true_organs_hold_their_tumors(site: Path) -> None:
    (case,) = samples(site, Config(), with_organs=True)
    (alone,) = samples(site, Config(), with_organs=False)
    organs = sorted(set(hosts().values()))
    assert case["image"].shape[0] == 1 + len(organs)
    assert torch.equal(case["image"][:1], alone["image"])
    for name in PHANTOM_LESIONS:
        inside = case["image"][1 + organs.index(hosts()[name])] > 0
        assert not (case["truth"][name] & ~inside).any()
    every = torch.stack([case["truth"][name] for name in PHANTOM_LESIONS]).any(0)
    assert torch.equal(case["label"][0] > 0, every)


def test_a_network_that_is_told_the_truth_finds_every_tumor_in_its_own_host(site: Path) -> None:
    (case,) = samples(site, Config(), with_organs=False)
    rows = score(Told(), [{**case, "image": case["label"]}], Config())
    held = [name for name in PHANTOM_LESIONS if case["truth"][name].any()]
    assert held
    assert [rows[name]["auroc_host"] for name in held] == [1.0] * len(held)
    assert [rows[name]["fpr95_host"] for name in held] == [0.0] * len(held)


def test_training_is_the_same_for_the_same_seed_and_moves_the_network(site: Path) -> None:
    cases = samples(site, Config(), with_organs=False)

    def trained(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        network = BasicUNet(3, 1, 1, features=(4, 4, 4, 4, 4, 4))
        start = network.final_conv.weight.detach().clone()
        train(network, cases, 2, seed, "test")
        assert not torch.equal(start, network.final_conv.weight)
        return network.final_conv.weight.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


@pytest.mark.parametrize("words", [["--steps", "0"], ["no.such=1"], ["--shapes", "absent"]])
def test_bad_input_is_named(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("lesion_peer: ")
