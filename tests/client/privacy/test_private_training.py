"""A private round: the patient is the unit, what leaves is noised, it is paid for first, and only then it leaves."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import client.privacy.private_training as private
from client.ledger import BudgetRefused, Charge, Ledger
from client.privacy import PatientAccountant
from client.privacy.faults import PrivacyError
from client.privacy.noise import KEY_BYTES, SecretStream
from client.privacy.patients import Patients, sample_patches
from client.privacy.trained import trained_names
from client.trainer import Trainer
from dsm_core.config import ModelConfig, PrivacyConfig, TrainConfig
from dsm_core.data import PatchBatch
from dsm_core.data.datalist import Case
from dsm_core.objectives import OrgansObjective
from strategies.messages import TrainOrder

SMALL = ModelConfig(widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)
KEY = bytes(range(KEY_BYTES))
PRIVACY = PrivacyConfig(mode="dp_sgd", epsilon=8.0, delta=1e-3, accountant="rdp")


class Cases:
    """Eight scans of six patients; a patch's brightness is its case's number."""

    names = ("liver",)
    patients = ("a", "b", None, "a", None, "c", "b", None)

    def __init__(self):
        cases = tuple(Case(f"case_{i}", None, None, ("liver",), name) for i, name in enumerate(self.patients))
        self.datalist = SimpleNamespace(site="mercy", cases=(*cases, Case("unlabelled", None, None, ())))
        self.drawn = []

    def sample_case(self, index, generator, batch):
        self.drawn.append(index)
        image = torch.full((batch, 1, 16, 16, 16), index / 10.0)
        image += 0.01 * torch.from_numpy(generator.random(image.shape, np.float32))
        return PatchBatch(image, image > 0.3, torch.ones(batch, 1, dtype=torch.bool), self.names)


@pytest.fixture
def trainer(make_task):
    task, config = make_task(1, size=16, config=SMALL), TrainConfig(batch=3, weight_decay=0.0)
    return Trainer(task.model, OrgansObjective(task.model, task.text, Cases(), config), config)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", "mercy", PatientAccountant("rdp"))
    ledger.create(epsilon=8.0, delta=1e-3)
    return ledger


def order(round=1, rounds=4, local_steps=2):
    return TrainOrder(round, rounds, "organs", round, rounds, 1e-3, local_steps, seed=0)


def train(trainer, ledger, wanted=None, privacy=PRIVACY, key=KEY):
    private.train_private_round(trainer, trainer.objective, wanted or order(), 1e-3, 3, privacy, ledger, key)
    return trainer.arrays()


def test_what_is_not_trained_privately_does_not_even_decay(make_task, ledger):
    task, config = make_task(1, size=16, config=SMALL), TrainConfig(batch=3, weight_decay=0.1)
    trainer = Trainer(task.model, OrgansObjective(task.model, task.text, Cases(), config), config)
    before, moved = trainer.arrays(), set(trained_names(task.model, "queries"))
    after = train(trainer, ledger, privacy=replace(PRIVACY, trained="queries"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert changed <= moved


def test_scans_of_a_patient_are_one_unit_and_unlabelled_ones_none():
    patients = Patients.of(Cases().datalist, expected=3)
    assert patients.cases == ((0, 3), (1, 6), (2,), (4,), (5,), (7,))
    assert patients.sampling_rate == 0.5


def test_more_patients_a_step_than_there_are_is_refused_and_their_number_stays_in_the_log(caplog):
    with pytest.raises(
        PrivacyError, match=r"train\.batch=7 patients a step, and this site has fewer; lower train.batch"
    ):
        Patients.of(Cases().datalist, expected=7)
    assert "mercy has 6" in caplog.text


def test_every_patient_is_drawn_by_chance_of_its_own():
    patients, stream = Patients.of(Cases().datalist, expected=2), SecretStream(KEY)
    draws = np.zeros((6000, 6))
    for row in draws:
        row[patients.draw(stream)] = 1
    assert np.allclose(draws.mean(0), 1 / 3, atol=4 * (2 / 9 / 6000) ** 0.5)
    correlation = np.corrcoef(draws.T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / 6000**0.5
    assert (draws.sum(1) == 0).any()


def test_patches_of_a_patient_lie_side_by_side():
    cases = Cases()
    patients = Patients.of(cases.datalist, expected=3)
    objective = OrgansObjective(None, None, cases, TrainConfig())
    batch = sample_patches(patients, [1, 4], objective, np.random.default_rng(0), patches=3)
    assert batch.image.shape[0] == 6
    assert set(cases.drawn[:3]) <= {1, 6}
    assert cases.drawn[3:] == [5, 5, 5]


def test_step_equals_the_formula_written_out(trainer, monkeypatch):
    """clip(mean gradient of each drawn patient), summed, over the constant: by autograd one patient at a time."""
    monkeypatch.setattr(private, "_PATCHES_AT_ONCE", 4)
    privacy, clip_norm = PrivacyConfig(mode="dp_sgd", patches_per_patient=2, clip_norm=0.05), 0.05
    used, steps = [], []

    def step_with_gradients(clip_norm=None):
        steps.append([p.grad.clone() for p in used])

    monkeypatch.setattr(trainer, "step_with_gradients", step_with_gradients)
    batches = []
    sample = private.sample_patches
    monkeypatch.setattr(private, "sample_patches", lambda *given: batches.append(sample(*given)) or batches[-1])
    monkeypatch.setattr(trainer.config, "text_only", 0.0)
    monkeypatch.setattr(trainer.config, "text_noise", 0.0)
    objective = trainer.objective
    used += private.used_parameters(trainer, objective.public_batch(2))
    patients = Patients.of(objective.datalist, expected=3)
    private.private_steps(trainer, objective, patients, 1, 1e-12, privacy, SecretStream(KEY))
    assert len(batches) > 1  # several passes for one step

    wanted = [torch.zeros_like(p) for p in used]
    for batch in batches:
        for start in range(0, len(batch.image), 2):
            rows = slice(start, start + 2)
            part = PatchBatch(batch.image[rows], batch.masks[rows], batch.annotated[rows], batch.names)
            gradients = torch.autograd.grad(trainer.losses(part, torch.Generator())[0].mean(), used)
            factor = min(1.0, clip_norm / torch.stack([g.norm() for g in gradients]).norm().item())
            for total, gradient in zip(wanted, gradients, strict=True):
                total += factor * gradient / 3
    found = torch.cat([g.flatten() for g in steps[0]])
    flat = torch.cat([g.flatten() for g in wanted])
    assert (found - flat).norm() < 1e-4 * flat.norm()


@pytest.mark.parametrize("shares_draws", [True, False])
def test_draws_that_samples_share_are_shared_by_no_two_patients(trainer, monkeypatch, shares_draws):
    """Else one patient more would move others to another pass, and so change their gradients as well."""
    monkeypatch.setattr(Patients, "draw", lambda self, stream: np.arange(len(self)))
    seen, sample = [], private.sample_patches
    monkeypatch.setattr(private, "sample_patches", lambda *given: seen.append(list(given[1])) or sample(*given))
    trainer.objective.shares_draws = shares_draws
    patients = Patients.of(trainer.objective.datalist, expected=3)
    private.private_steps(trainer, trainer.objective, patients, 1, 1.0, PRIVACY, SecretStream(KEY))
    assert seen == ([[0], [1], [2], [3], [4], [5]] if shares_draws else [[0, 1, 2, 3], [4, 5]])


def test_round_repeats_bit_for_bit_from_its_key_and_never_without(trainer, ledger):
    start, moments = trainer.arrays(), trainer.moments()
    ledger.set_ceiling(100.0)

    def again(key):
        trainer.load(start)
        trainer.load_moments(moments, steps=0)
        return train(trainer, ledger, key=key)

    once = again(KEY)
    assert all(np.array_equal(once[name], array) for name, array in again(KEY).items())
    free, other = again(None), again(None)
    assert any(not np.array_equal(free[name], other[name]) for name in free)


def test_round_is_charged_once_it_is_trained_and_the_whole_run_spends_what_was_promised(trainer, ledger):
    for round in range(1, 5):
        train(trainer, ledger, order(round))
    history = ledger.read()
    assert [charge.steps for charge in history.charges] == [2] * 4
    assert {charge.sampling_rate for charge in history.charges} == {0.5}
    assert 0.98 * 8.0 < PatientAccountant("rdp").epsilon(history.charges, 1e-3) <= 8.0
    with pytest.raises(BudgetRefused):
        train(trainer, ledger, order(4))


def test_promise_counts_the_rounds_of_all_stages(trainer, ledger):
    stages = [("organs", 2), ("prior", 1), ("tumors", 3)]
    plan = [(stage, r, rounds) for stage, rounds in stages for r in range(1, rounds + 1)]
    for round, (stage, stage_round, stage_rounds) in enumerate(plan, start=1):
        train(trainer, ledger, TrainOrder(round, 6, stage, stage_round, stage_rounds, 1e-3, 2, seed=0))
    history = ledger.read()
    assert {(c.sampling_rate, c.noise_multiplier) for c in history.charges} == {
        (history.charges[0].sampling_rate, history.charges[0].noise_multiplier)
    }
    assert 0.98 * 8.0 < PatientAccountant("rdp").epsilon(history.charges, 1e-3) <= 8.0
    with pytest.raises(BudgetRefused):
        train(trainer, ledger, TrainOrder(6, 6, "tumors", 3, 3, 1e-3, 2, seed=0))


def test_run_above_the_ceiling_is_refused_before_anything_is_spent_or_trained(trainer, ledger):
    before = trainer.arrays()
    with pytest.raises(BudgetRefused):
        train(trainer, ledger, privacy=replace(PRIVACY, epsilon=9.0))
    assert ledger.read().charges == ()
    assert all(np.array_equal(before[name], array) for name, array in trainer.arrays().items())


def test_nothing_comes_out_when_the_charge_fails_at_the_end(trainer, ledger, monkeypatch):
    def spend_elsewhere(*_):
        ledger.charge(Charge(0.5, 1.0, 8))

    monkeypatch.setattr(private, "private_steps", spend_elsewhere)
    with pytest.raises(BudgetRefused):
        train(trainer, ledger)


def test_delta_that_would_allow_to_reveal_a_patient_is_refused(trainer, ledger):
    with pytest.raises(PrivacyError, match=r"delta=0\.2 is not below 1 / patients of this site"):
        train(trainer, ledger, privacy=PrivacyConfig(mode="dp_sgd", delta=0.2))


def test_without_a_delta_the_ledgers_counts(trainer, ledger):
    patients = Patients.of(Cases().datalist, expected=3)
    run = private.plan_run(PrivacyConfig(mode="dp_sgd", accountant="rdp"), patients, 8, ledger_delta=1e-3)
    assert run.delta == 1e-3
    assert run == private.plan_run(PRIVACY, patients, 8, ledger_delta=0.1)


def test_step_without_any_patient_is_noise_and_nothing_else(trainer, ledger, monkeypatch):
    monkeypatch.setattr(Patients, "draw", lambda self, stream: np.array([], int))
    before, after = trainer.arrays(), train(trainer, ledger)
    assert not np.array_equal(before["encoder.stages.0.0.conv.weight"], after["encoder.stages.0.0.conv.weight"])
    assert all(np.isfinite(array).all() for array in after.values())


def test_frozen_tensors_foreign_rows_and_unused_heads_stay_bit_for_bit(trainer, ledger):
    before = trainer.arrays()
    after = train(trainer, ledger, privacy=replace(PRIVACY, trained="queries"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"class_rows", "text_to_query", "void", "organ_head", "to_text"}
    rows = before["class_rows.residual.weight"] != after["class_rows.residual.weight"]
    assert rows.any(1).tolist() == [name == "liver" for name in trainer.model.names]


def test_what_is_released_is_chosen_without_patients(trainer):
    used = set(private.used_parameters(trainer, trainer.objective.public_batch(2)))
    names = {name for name, parameter in trainer.model.named_parameters() if parameter in used}
    assert not any(name.startswith(("prior", "tumors")) for name in names)
    assert "organ_head.mask.0.weight" in names


def test_layer_that_is_called_past_its_forward_is_found_out(trainer):
    head = trainer.model.organ_head
    original, weight = head.forward, head.presence.weight

    def forward(queries):
        weights, presence = original(queries)
        return weights, presence + (queries @ weight.T)[..., 0]

    head.forward = forward
    with pytest.raises(PrivacyError, match=r"gradients of organ_head\.presence\.weight do not add up to the batch's"):
        private.used_parameters(trainer, trainer.objective.public_batch(2))
