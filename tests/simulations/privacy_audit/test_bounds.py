"""A proven epsilon is below the true one as often as it says, and not vacuous where much is given away."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from simulations.privacy_audit.bounds import SHARES, chance, proven_epsilon


def randomised_response(epsilon, canaries, seed):
    """Each coin is told truly with probability e^epsilon / (1 + e^epsilon): exactly epsilon, no delta."""
    generator = np.random.default_rng(seed)
    coins = generator.random(canaries) < 0.5
    is_true = generator.random(canaries) < 1 / (1 + math.exp(-epsilon))
    return np.where(is_true == coins, 1.0, -1.0), coins


def test_chance_without_delta_is_the_binomial_of_randomised_response():
    for epsilon, guesses, correct in ((1.0, 20, 18), (0.0, 7, 7), (3.0, 50, 50)):
        wanted = stats.binom.sf(correct - 1, guesses, math.exp(epsilon) / (1 + math.exp(epsilon)))
        assert chance(100, guesses, correct, epsilon, delta=0.0) == pytest.approx(wanted)


def test_all_right_guesses_prove_what_can_be_worked_out_by_hand():
    """Of M guesses all are right with probability p^M; p^M = level gives epsilon = log(p / (1 - p))."""
    canaries = 200
    coins = np.arange(canaries) % 2 == 0
    proof = proven_epsilon(np.where(coins, 5.0, -5.0), coins, delta=0.0, confidence=0.95)
    success = (0.05 / len(SHARES)) ** (1 / canaries)
    assert (proof.guesses, proof.correct) == (canaries, canaries)
    assert proof.epsilon == pytest.approx(math.log(success / (1 - success)), abs=2e-4)


def test_chance_with_delta_equals_the_published_algorithm():
    """The loop of Steinke, Nasr, Jagielski 2023, appendix D, written out."""
    for canaries, guesses, correct, epsilon, delta in ((1000, 100, 80, 0.5, 1e-3), (50, 50, 49, 2.0, 1e-2)):
        success, reached, steepest = 1 / (1 + math.exp(-epsilon)), 0.0, 0.0
        for i in range(1, correct + 1):
            reached += stats.binom.pmf(correct - i, guesses, success)
            steepest = max(steepest, reached / i)
        wanted = stats.binom.sf(correct - 1, guesses, success) + steepest * delta * 2 * canaries
        assert chance(canaries, guesses, correct, epsilon, delta) == pytest.approx(min(1.0, wanted))


def test_delta_weakens_a_proof():
    coins = np.arange(100) % 2 == 0
    evidence = np.where(coins, 1.0, -1.0)
    strict, loose = (proven_epsilon(evidence, coins, delta, 0.95).epsilon for delta in (0.0, 1e-3))
    assert 0 < loose < strict


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_bounded_below_its_epsilon_with_the_stated_confidence(epsilon):
    seeds, confidence = 200, 0.9
    proofs = [proven_epsilon(*randomised_response(epsilon, 2000, s), 0.0, confidence).epsilon for s in range(seeds)]
    above = sum(proof > epsilon for proof in proofs)
    assert above <= stats.binom.ppf(0.999, seeds, 1 - confidence)
    assert np.median(proofs) > 0.75 * epsilon


def test_guessing_blindly_proves_nothing():
    generator = np.random.default_rng(0)
    proofs = [
        proven_epsilon(generator.standard_normal(500), generator.random(500) < 0.5, 1e-5, 0.95).epsilon
        for _ in range(100)
    ]
    assert sum(proof > 0 for proof in proofs) <= stats.binom.ppf(0.999, 100, 0.05)


def test_surest_guesses_are_counted_first():
    """Ten canaries are given away for sure, the rest not at all."""
    coins = np.random.default_rng(1).random(500) < 0.5
    evidence = np.random.default_rng(2).choice([-1.0, 1.0], 500)
    evidence[:10] = np.where(coins[:10], 9.0, -9.0)
    proof = proven_epsilon(evidence, coins, delta=0.0, confidence=0.95)
    assert (proof.guesses, proof.correct) == (10, 10)
    assert proof.epsilon > 0.5
