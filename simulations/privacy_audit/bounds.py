"""Which epsilon do right guesses prove? A lower bound that holds for any mechanism.

Canaries are each included by a fair coin, an attacker sees what comes out and guesses some of the coins. If the whole
is (epsilon, delta)-private, the number of right guesses is no larger than a binomial one of success e^epsilon / (1 +
e^epsilon), but for a term in delta (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2). Canaries of one run
may depend on each other; independent runs on canaries of their own compose in parallel, so they count as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Shares of the canaries that are guessed, the surest first. All are tried, and each pays for that (Bonferroni).
SHARES = (0.02, 0.05, 0.15, 0.4, 1.0)
_PRECISION = 1e-4


@dataclass(frozen=True)
class Proof:
    """What guesses prove.

    Attributes:
        epsilon: at the confidence asked for, the mechanism is not (epsilon', delta)-private for any epsilon' below.
        guesses: how many canaries were guessed. correct: how many of them rightly.
    """

    epsilon: float
    guesses: int
    correct: int


def proven_epsilon(evidence: np.ndarray, included: np.ndarray, delta: float, confidence: float) -> Proof:
    """The largest epsilon that some share of the guesses proves.

    Args:
        evidence: (M,) above 0 says "included", below 0 "left out"; the further from 0, the surer.
        included: (M,) bool, the coins.
        confidence: probability with which the bound holds, all shares together.
    """
    order = np.argsort(-np.abs(evidence), kind="stable")
    is_right = ((evidence > 0) == included)[order]
    proofs = []
    for share in SHARES:
        guesses = max(1, round(share * len(included)))
        correct = int(is_right[:guesses].sum())
        level = (1 - confidence) / len(SHARES)
        proofs.append(Proof(_least_epsilon(len(included), guesses, correct, delta, level), guesses, correct))
    return max(proofs, key=lambda proof: proof.epsilon)


def chance(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Upper bound on the probability of so many right guesses against an (epsilon, delta)-private mechanism."""
    success = 1 / (1 + math.exp(-epsilon))
    beyond = float(stats.binom.sf(correct - 1, guesses, success))
    if not correct or not delta:
        return beyond
    short = np.arange(1, correct + 1)
    just_short = stats.binom.cdf(correct - 1, guesses, success) - stats.binom.cdf(correct - 1 - short, guesses, success)
    return min(1.0, beyond + 2 * canaries * delta * float((just_short / short).max()))


def _least_epsilon(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """The largest epsilon under which so many right guesses have a chance of at most `level`; 0 where none has."""
    if chance(canaries, guesses, correct, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, 1.0
    while chance(canaries, guesses, correct, high, delta) <= level:
        low, high = high, 2 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(canaries, guesses, correct, middle, delta) <= level else (low, middle)
    return low
