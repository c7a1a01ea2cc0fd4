"""What the released model, a single update and the rest of a reply give away, without privacy and with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsm_core.config import PrivacyConfig
from simulations.privacy_audit.beside import beside_the_noise, refuses_metrics
from simulations.privacy_audit.inversion import Descent, invert_update, slope_of_distance
from simulations.privacy_audit.planted import plant
from simulations.privacy_audit.released import attack_released_model
from simulations.privacy_audit.rounds import AuditedSite, Schedule

PRIVATE = PrivacyConfig(mode="dp_sgd", epsilon=1.0, delta=1e-5, accountant="rdp", patches_per_patient=1)


def test_canaries_are_all_different_and_their_labels_say_nothing_of_their_scans():
    planted = plant(12, np.random.default_rng(0))
    rows = planted.images.flatten(1)
    assert (torch.corrcoef(rows) - torch.eye(12)).abs().max() < 0.3
    labels = planted.masks.flatten(2).float()
    assert abs(np.mean([np.corrcoef(rows[i], labels[i, 0])[0, 1] for i in range(12)])) < 0.1
    assert labels.mean(2).min() > 0.1


def test_private_reply_holds_noised_tensors_only_and_an_open_one_more():
    assert beside_the_noise(PRIVATE, seed=0) == []
    assert {place.split("/")[1] for place in beside_the_noise(PrivacyConfig(), seed=0)} == {
        "loss",
        "num-cases",
        "seconds",
    }


def test_private_reply_with_a_loss_is_not_sent():
    assert refuses_metrics(PRIVATE, seed=0)


def test_slope_is_the_derivative_of_the_gradients_distance():
    """Against autograd twice, on a network that can be derived twice."""
    torch.manual_seed(0)
    layer, image = torch.nn.Linear(6, 4).double(), torch.rand(1, 6, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())

    def loss():
        return layer(image).tanh().square().sum()

    target = torch.nn.functional.normalize(torch.randn(28, dtype=torch.float64), dim=0)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), parameters, create_graph=True)])
    distance = 1 - torch.nn.functional.cosine_similarity(gradient, target, dim=0)
    wanted = torch.autograd.grad(distance, image)[0]
    before = [p.detach().clone() for p in parameters]
    found = slope_of_distance(loss, image, parameters, target)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(p, kept) for p, kept in zip(parameters, before, strict=True))


def test_inversion_sees_a_scan_in_an_open_update_and_none_in_a_private_one():
    seen, hidden = (
        invert_update(privacy, Descent(1, 1, 60), 2, lambda _: None) for privacy in (PrivacyConfig(), PRIVATE)
    )
    assert seen.similarity > 0.4
    assert abs(hidden.similarity) < 0.15
    assert hidden.likeness < 0.5 * seen.likeness


def test_attack_on_the_model_sees_only_what_a_run_releases():
    """With weights that hardly move nothing is learned of anybody: evidence is rounding, not membership."""
    still = Schedule(rounds=1, local_steps=1, rate=1e-12, expected=4)
    trials = attack_released_model(PrivacyConfig(), 16, still, seed=0, tick=lambda _: None)
    assert np.abs(trials.evidence).max() < 1e-5
    assert 0 < trials.included.sum() < 16


@pytest.mark.parametrize("privacy", [PrivacyConfig(), PRIVATE], ids=["open", "private"])
def test_run_repeats_bit_for_bit_from_its_seed_and_number(privacy):
    planted = plant(4, np.random.default_rng(0))
    site = AuditedSite(planted, privacy, seed=3)
    schedule = Schedule(rounds=1, local_steps=1, rate=1e-3, expected=2)
    first, again, other = (next(iter(site.run(schedule, number)))[0] for number in (0, 0, 1))
    assert all(np.array_equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not np.array_equal(tensor, other[name]) for name, tensor in first.items())
