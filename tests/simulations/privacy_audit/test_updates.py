"""The attack on updates succeeds without privacy, stays under the claim with it, and finds a broken mechanism out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import client.privacy.private_training as private
from client.privacy import PatientAccountant
from client.privacy.gradients import PatientGradients
from client.privacy.mechanism import GaussianSum
from dsm_core.config import PrivacyConfig
from simulations.privacy_audit import bounds, gaussian
from simulations.privacy_audit.gaussian import SampledGaussian
from simulations.privacy_audit.planted import plant
from simulations.privacy_audit.rounds import AuditedSite
from simulations.privacy_audit.updates import PATIENTS, SCHEDULE, STILL, UpdateReader, attack_updates

CLAIM, DELTA, CONFIDENCE = 8.0, 1e-5, 0.95
RATE = SCHEDULE.expected / PATIENTS


def proven(privacy, runs):
    """Lower bound on epsilon of whatever the site does now, under the claim."""
    noise = PatientAccountant().noise_for(CLAIM, DELTA, RATE, SCHEDULE.rounds)
    claim = SampledGaussian(RATE, SCHEDULE.rounds, noise)
    trials = attack_updates(privacy, claim, runs, 0, lambda _: None)
    return gaussian.proven_epsilon(trials.evidence, trials.included, claim, DELTA, CONFIDENCE).epsilon


def private_at_claim(patches=1):
    return PrivacyConfig(mode="dp_sgd", epsilon=CLAIM, delta=DELTA, patches_per_patient=patches)


class HalfTheNoise(GaussianSum):
    def __init__(self, parameters, clip_norm, noise_multiplier, stream):
        super().__init__(parameters, clip_norm, noise_multiplier / 2, stream)


class NoNoise(GaussianSum):
    def __init__(self, parameters, clip_norm, noise_multiplier, stream):
        super().__init__(parameters, clip_norm, 0.0, stream)


class NotClipped(GaussianSum):
    def add(self, gradients):
        clip_norm, self.clip_norm = self.clip_norm, 1e9
        factors = super().add(gradients)
        self.clip_norm = clip_norm
        return factors


class PatchByPatch(PatientGradients):
    """Clips each patch and adds them all up, as if every patch were a patient of its own."""

    def backward(self, losses, patches=1):
        return super().backward(losses, 1)


def test_without_privacy_the_attack_succeeds():
    trials = attack_updates(PrivacyConfig(), SampledGaussian(RATE, SCHEDULE.rounds, 0.0), 20, 0, lambda _: None)
    assert not (trials.evidence > 0)[~trials.included].any()  # nobody is accused who was not there
    assert (trials.evidence > 0)[trials.included].mean() > 0.7  # who was there and not drawn cannot be found
    assert bounds.proven_epsilon(trials.evidence, trials.included, DELTA, CONFIDENCE).epsilon > 2.0


def test_sound_mechanism_stays_under_its_claim_and_the_attack_is_not_blind():
    found = proven(private_at_claim(), runs=40)
    assert 0.2 * CLAIM < found < CLAIM


@pytest.mark.parametrize(
    ("place", "broken", "patches", "clip_norm", "runs"),
    [
        ("GaussianSum", HalfTheNoise, 1, 1.0, 100),
        # A gradient is 5 to 11 long. What patients add beyond the norm blurs each other's traces, so not much of it.
        ("GaussianSum", NotClipped, 1, 2.0, 80),
        ("PatientGradients", PatchByPatch, 3, 1.0, 40),
    ],
)
def test_broken_mechanism_is_found_out(monkeypatch, place, broken, patches, clip_norm, runs):
    monkeypatch.setattr(private, place, broken)
    assert proven(replace(private_at_claim(patches), clip_norm=clip_norm), runs) > CLAIM


def test_axes_tell_patients_apart_exactly():
    """An update made by hand of two patients' clipped gradients has their places as its coordinates."""
    planted = plant(3, np.random.default_rng(0))
    site = AuditedSite(planted, PrivacyConfig(), seed=0)
    reader = UpdateReader(site.trainer, planted, clip_norm=1.0)
    assert np.allclose(reader._axes @ reader._axes.T, np.eye(3), atol=1e-6)
    summed = (reader.places[0] + reader.places[2]) @ reader._axes / SCHEDULE.expected
    moments, start = {}, 0
    for key in reader._keys:
        size = site.start[key].size
        moments[f"{key}@exp_avg"] = (1 - reader._decay) * summed[start : start + size]
        start += size
    seen = reader.steps([moments])[0] * SCHEDULE.expected
    assert np.allclose(seen, reader.places[0] + reader.places[2], atol=1e-6)
    assert (reader.shares([moments]) > 0).tolist() == [True, False, True]


def test_weights_stand_still_at_the_attackers_learning_rate():
    planted = plant(PATIENTS, np.random.default_rng(0))
    site = AuditedSite(planted, private_at_claim(), seed=0)
    *_, (arrays, metrics) = site.run(SCHEDULE, 0)
    furthest = 2 * SCHEDULE.rounds * STILL
    moved = {name: np.abs(arrays[name] - tensor).max() for name, tensor in site.start.items()}
    assert all(distance <= furthest for distance in moved.values()), moved
    assert not metrics
    assert any(np.abs(arrays[name]).max() > 0 for name in arrays if name.endswith("@exp_avg"))


def test_patient_who_is_left_out_changes_no_bit():
    """Whether the scan of one who is left out is this or that, the update is the same: it counts as zero."""
    updates = []
    for seed in (0, 1):
        planted = plant(PATIENTS, np.random.default_rng(0))
        planted.images[0] = plant(1, np.random.default_rng(seed)).images[0]
        planted.present[0] = False
        site = AuditedSite(planted, private_at_claim(), seed=0)
        updates.append([arrays for arrays, _ in site.run(SCHEDULE, 0)][-1])
    assert all(np.array_equal(tensor, updates[1][name]) for name, tensor in updates[0].items())


def test_but_for_the_noise_an_update_is_the_sum_of_the_patients_drawn_and_nothing_else(monkeypatch):
    """Passes of several patients, patients left out beside others, clipping: each is exact, along every axis."""
    monkeypatch.setattr(private, "GaussianSum", NoNoise)
    planted = plant(PATIENTS, np.random.default_rng(0))
    planted.present[:] = np.arange(PATIENTS) % 3 > 0
    site = AuditedSite(planted, private_at_claim(), seed=0)
    reader, seen_drawn = UpdateReader(site.trainer, planted, clip_norm=1.0), set()
    for number in range(4):
        updates, drawn = [], []
        for arrays, _ in site.run(SCHEDULE, number):
            updates.append(arrays)
            drawn.append(np.isin(np.arange(PATIENTS), planted.drawn) & planted.present)
            seen_drawn |= set(planted.drawn)
            planted.drawn.clear()
        assert np.allclose(reader.steps(updates) * SCHEDULE.expected, np.array(drawn) @ reader.places, atol=1e-5)
    assert seen_drawn == set(range(PATIENTS))
