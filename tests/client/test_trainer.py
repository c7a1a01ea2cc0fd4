"""Local training: only the site's own class rows move, and a round can be repeated bit for bit."""

import copy

import numpy as np
import pytest
import torch

from client.trainer import StepSeed, Trainer, learning_rate
from dsm_core.classes import describe_class
from dsm_core.config import ModelConfig, TextConfig, TrainConfig
from dsm_core.data import PatchBatch
from dsm_core.model import build_model
from dsm_core.objectives import OrgansObjective, trained_parts
from dsm_core.text_building import build_text_space
from strategies.averaging import MOMENT_KINDS

SMALL = ModelConfig(widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)


class Balls:
    """Patches with a bright box that is the liver."""

    names = ("liver",)

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch:
        image = torch.from_numpy(generator.normal(0.3, 0.05, (batch, 1, 16, 16, 16)).astype(np.float32))
        image[:, :, 4:12, 4:12, 4:12] += 0.5
        return PatchBatch(image, image > 0.6, torch.ones(batch, 1, dtype=torch.bool), ("liver",))


@pytest.mark.gpu
def test_two_rounds_on_cuda_are_two_rounds_on_the_cpu(trainer: Trainer) -> None:
    on_cuda = Trainer(copy.deepcopy(trainer.model).to("cuda"), trainer.text, trainer.config, trainer.labelled)
    assert on_cuda.device.type == "cuda"
    before, after = trainer.arrays(), []
    for each in (trainer, on_cuda):
        for round in (1, 2):
            each.load_moments(each.moments(), steps=2 * (round - 1))  # as moments that travelled
            each.steps(Balls(), 2, 1e-3, StepSeed(0, "north", round))
        assert each.moments().keys() == trainer.moments().keys()
        after.append(np.concatenate([each.arrays()[name].ravel() for name in before]))
    start = np.concatenate([array.ravel() for array in before.values()])
    assert np.linalg.norm(after[1] - after[0]) < 0.05 * np.linalg.norm(after[0] - start)


@pytest.fixture
def trainer() -> Trainer:
    text = build_text_space([describe_class(name) for name in ("kidney", "liver")], TextConfig(encoder="offline"))
    torch.manual_seed(0)
    model = build_model(SMALL, text)
    model.class_rows.evidence[:] = torch.tensor([2.0, 3.0])
    config = TrainConfig(lr=5e-3, text_only=0.2)
    return Trainer(model, OrgansObjective(model, text, Balls(), config), config)


def test_foreign_class_row_stays_as_it_came(trainer: Trainer) -> None:
    trainer.steps(3, 1e-2, StepSeed(0, "site_a", 1))
    rows = trainer.arrays()["class_rows.residual.weight"]
    assert np.all(rows[trainer.model.names.index("kidney")] == 0)
    assert np.any(rows[trainer.model.names.index("liver")] != 0)


def test_loss_falls(trainer: Trainer) -> None:
    first = trainer.steps(3, 5e-3, StepSeed(0, "site_a", 1))["loss"]
    for round in range(2, 12):
        last = trainer.steps(3, 5e-3, StepSeed(0, "site_a", round))["loss"]
    assert last < 0.6 * first


def test_round_repeats_bit_for_bit_from_arrays_and_moments(trainer: Trainer) -> None:
    trainer.steps(2, 5e-3, StepSeed(0, "site_a", 1))
    arrays, moments = trainer.arrays(), trainer.moments()
    trainer.steps(2, 5e-3, StepSeed(0, "site_a", 2))
    once = trainer.arrays()
    trainer.steps(1, 5e-3, StepSeed(0, "site_a", 9))
    trainer.load(arrays)
    trainer.load_moments(moments, steps=2)
    trainer.steps(2, 5e-3, StepSeed(0, "site_a", 2))
    again = trainer.arrays()
    assert all(np.array_equal(once[name], again[name]) for name in once)


def test_learning_rate_rises_then_falls_to_two_percent() -> None:
    rates = [learning_rate(1.0, 0.1, round, 20) for round in range(1, 21)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[-1] == pytest.approx(0.02)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_moments_that_travel_with_the_tensors_go_on_as_if_nothing_had_happened(trainer: Trainer) -> None:
    start = trainer.arrays()
    trainer.steps(2, 5e-3, StepSeed(0, "site_a", 1))
    arrays, moments = trainer.arrays(), trainer.moments()
    trainer.steps(2, 5e-3, StepSeed(0, "site_a", 2))
    whole = trainer.arrays()
    moved = [key for key in start if key.startswith(trained_parts("organs")) and "evidence" not in key]
    assert set(moments) == {f"{key}@{kind}" for key in moved for kind in MOMENT_KINDS}
    trainer.load(arrays | moments)
    trainer.load_moments(arrays | moments, steps=2)
    trainer.steps(2, 5e-3, StepSeed(0, "site_a", 2))
    assert all(np.array_equal(whole[name], array) for name, array in trainer.arrays().items())


def test_what_a_stage_does_not_train_stays_bit_for_bit(trainer: Trainer) -> None:
    before = trainer.arrays()
    trainer.steps(2, 5e-3, StepSeed(0, "site_a", 1))
    moved = {name for name, array in trainer.arrays().items() if not np.array_equal(array, before[name])}
    assert moved
    assert all(name.startswith(trained_parts("organs")) for name in moved)
