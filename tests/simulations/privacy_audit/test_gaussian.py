"""The densities of a sampled Gaussian give the known answers, and bounds hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from simulations.privacy_audit.gaussian import SampledGaussian, proven_epsilon


def trials(mechanism, count, seed):
    """Evidence and coins of an attack that sees the mechanism itself."""
    generator = np.random.default_rng(seed)
    coins = generator.random(count) < 0.5
    drawn = generator.random((count, mechanism.steps)) < mechanism.rate
    seen = drawn * coins[:, None] + mechanism.noise * generator.standard_normal((count, mechanism.steps))
    return seen, coins


def evidence(mechanism, seen):
    return mechanism.evidence(seen).sum(1)


@pytest.mark.parametrize(("steps", "noise"), [(1, 0.6), (4, 2.0), (3, 5.0)])
def test_without_sampling_it_is_one_gaussian_of_smaller_noise(steps, noise):
    """Phi(Phi^-1(a) + mu) true positives (Dong, Roth, Su 2022, arXiv:1905.02383), mu = sqrt(steps) / sigma."""
    mechanism, mu = SampledGaussian(1.0, steps, noise), math.sqrt(steps) / noise
    for false in (0.001, 0.05, 0.5, 0.9):
        wanted = stats.norm.cdf(stats.norm.ppf(false) + mu)
        assert mechanism.true_positives(false) == pytest.approx(wanted, abs=1e-4)
    assert mechanism.right_guesses() == pytest.approx(stats.norm.cdf(mu / 2), abs=1e-4)
    assert mechanism.threshold(0.05) == pytest.approx(-stats.norm.ppf(0.05) * mu - mu**2 / 2, abs=0.01)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.25, 0.5), (1.0, 4.0), (1.7, 8.0)])
def test_delta_of_a_gaussian_is_the_analytic_one(mu, epsilon):
    """Balle and Wang 2018, arXiv:1805.06530, theorem 8."""
    wanted = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
    mechanism = SampledGaussian(1.0, 1, 1 / mu)
    assert mechanism.delta(epsilon) == pytest.approx(wanted, rel=1e-3, abs=1e-9)
    assert mechanism.epsilon(wanted) == pytest.approx(epsilon, abs=2e-3)


def test_one_sampled_step_is_its_mixture_in_both_directions():
    rate, noise, epsilon = 0.3, 0.8, 0.4
    x = np.linspace(-12, 13, 400_001)
    out, shifted = stats.norm.pdf(x, 0, noise), stats.norm.pdf(x, 1, noise)
    present = (1 - rate) * out + rate * shifted
    step = x[1] - x[0]
    wanted = max(
        np.maximum(present - math.exp(epsilon) * out, 0).sum() * step,
        np.maximum(out - math.exp(epsilon) * present, 0).sum() * step,
    )
    assert SampledGaussian(rate, 1, noise).delta(epsilon) == pytest.approx(wanted, rel=2e-3)


def test_evidence_is_the_ratio_of_the_densities():
    mechanism, x = SampledGaussian(0.3, 1, 0.8), np.array([-2.0, 0.1, 0.9, 3.0])
    out, shifted = stats.norm.pdf(x, 0, 0.8), stats.norm.pdf(x, 1, 0.8)
    assert mechanism.evidence(x) == pytest.approx(np.log((0.7 * out + 0.3 * shifted) / out))
    assert SampledGaussian(1.0, 1, 0.8).evidence(x) == pytest.approx(np.log(shifted / out))


def test_composition_agrees_with_a_great_many_throws():
    mechanism = SampledGaussian(0.5, 3, 0.9)
    seen, coins = trials(mechanism, 400_000, seed=0)
    found = evidence(mechanism, seen)
    limit = np.quantile(found[~coins], 0.9)
    assert (found[coins] > limit).mean() == pytest.approx(mechanism.true_positives(0.1), abs=0.006)


@pytest.mark.parametrize(("rate", "steps", "noise"), [(1.0, 1, 0.6), (0.5, 2, 0.71)])
def test_bound_is_below_the_truth_with_the_stated_confidence_and_not_vacuous(rate, steps, noise):
    mechanism, delta, confidence, seeds = SampledGaussian(rate, steps, noise), 1e-5, 0.9, 60
    truth = mechanism.epsilon(delta)
    found = []
    for seed in range(seeds):
        seen, coins = trials(mechanism, 1500, seed)
        found.append(proven_epsilon(evidence(mechanism, seen), coins, mechanism, delta, confidence).epsilon)
    assert sum(bound > truth for bound in found) <= stats.binom.ppf(0.999, seeds, 1 - confidence)
    assert np.median(found) > 0.6 * truth


def test_blind_guesses_prove_no_noise_away():
    generator = np.random.default_rng(0)
    claim = SampledGaussian(0.5, 2, 0.71)
    proof = proven_epsilon(generator.standard_normal(800), generator.random(800) < 0.5, claim, 1e-5, 0.95)
    assert (proof.epsilon, proof.noise) == (0.0, math.inf)


def test_half_of_the_noise_is_found_out():
    claim = SampledGaussian(0.5, 2, 3.19)
    seen, coins = trials(SampledGaussian(0.5, 2, 3.19 / 2), 4000, seed=3)
    proof = proven_epsilon(evidence(claim, seen), coins, claim, 1e-5, 0.95)
    assert proof.epsilon > claim.epsilon(1e-5)
    assert proof.noise < 3.19
