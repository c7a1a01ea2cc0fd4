"""Which epsilon do an attack's errors prove of a Poisson-sampled Gaussian mechanism, its noise unknown?

    a step    without the patient  x ~ N(0, sigma^2)      with it  x ~ (1 - q) N(0, sigma^2) + q N(1, sigma^2)

No attack on `steps` such steps has more true positives at its false positives, or more right guesses, than the
likelihood ratio has. Where one does (Clopper-Pearson intervals), so much noise cannot have been there; the most that
could have been gives epsilon (Nasr et al. 2023, arXiv:2302.07956). Tighter than `bounds`, which must allow any
mechanism. Trials must be independent. Computed from the densities, without the accountant that made the claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

# False positive rates, under the claim, of the thresholds tried; they and the guess at every coin pay for each other
# (Bonferroni).
FALSE_POSITIVES = (0.1, 0.02)
_GRID = 2e-3  # of the logarithmic likelihood ratio
_TAIL = 1e-13  # probability left out at either end of a step
_NOISE_RANGE, _NOISE_ERROR = (0.05, 200.0), 1e-3


@dataclass(frozen=True)
class SampledGaussian:
    """`steps` Gaussian releases, each of which a patient takes part in with probability `rate`.

    Attributes:
        noise: sigma, in units of what one patient adds at most.
    """

    rate: float
    steps: int
    noise: float

    def evidence(self, shift: np.ndarray) -> np.ndarray:
        """Logarithm of the likelihood ratio of steps at `shift`, in units of what one patient adds."""
        return np.logaddexp(math.log1p(-self.rate) if self.rate < 1 else -np.inf, self._log_term(shift))

    def true_positives(self, false_positives: float) -> float:
        """Most true positives of any test that has these false positives, by the Neyman-Pearson lemma."""
        out, with_patient, _ = _ratios(self)
        # Survival of both laws, from the largest ratio down; straight lines between thresholds are randomised tests.
        return float(np.interp(false_positives, _survival(out), _survival(with_patient)))

    def right_guesses(self) -> float:
        """Largest probability of guessing a fair coin."""
        out, with_patient, _ = _ratios(self)
        return 0.5 + 0.25 * float(np.abs(with_patient - out).sum())

    def threshold(self, false_positives: float) -> float:
        """The ratio's logarithm that is passed so often without the patient."""
        out, _, ratios = _ratios(self)
        return float(ratios[::-1][np.searchsorted(np.cumsum(out[::-1]), false_positives)])

    def delta(self, epsilon: float) -> float:
        """Least delta at which `epsilon` holds, for adding and for removing the patient."""
        out, with_patient, ratios = _ratios(self)
        gained = np.where(ratios > epsilon, with_patient * -np.expm1(epsilon - ratios), 0.0).sum()
        lost = np.where(-ratios > epsilon, out * -np.expm1(epsilon + ratios), 0.0).sum()
        return float(max(gained, lost))

    def epsilon(self, delta: float) -> float:
        """Least epsilon that holds at `delta`."""
        low, high = 0.0, 1.0
        if self.delta(low) <= delta:
            return 0.0
        while self.delta(high) > delta:
            low, high = high, 2 * high
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return low

    def _log_term(self, shift: np.ndarray) -> np.ndarray:
        return math.log(self.rate) + (2 * np.asarray(shift, float) - 1) / (2 * self.noise**2)


@dataclass(frozen=True)
class NoiseProof:
    """What an attack's errors prove.

    Attributes:
        epsilon: at the confidence asked for, the mechanism, if of this kind, spends at least so much.
        noise: there was no more of it.
    """

    epsilon: float
    noise: float


def proven_epsilon(
    evidence: np.ndarray, included: np.ndarray, claim: SampledGaussian, delta: float, confidence: float
) -> NoiseProof:
    """Lower bound on epsilon and upper bound on the noise.

    Args:
        evidence: (M,) of independent trials, best the logarithm of the likelihood ratio under the claim.
        included: (M,) bool. claim: rate and steps are taken for granted; its noise only chooses thresholds.
    """
    level = (1 - confidence) / (1 + len(FALSE_POSITIVES))
    wrong = int(((evidence > 0) != included).sum())
    right, found = 1 - _highest(wrong, len(included), level), []
    for rate in FALSE_POSITIVES:
        is_guessed = evidence > claim.threshold(rate)
        false = _highest(int(is_guessed[~included].sum()), int((~included).sum()), level / 2)
        true = 1 - _highest(int((~is_guessed)[included].sum()), int(included.sum()), level / 2)
        found.append((false, true))

    def is_refuted(noise: float) -> bool:
        mechanism = SampledGaussian(claim.rate, claim.steps, noise)
        return right > mechanism.right_guesses() or any(true > mechanism.true_positives(false) for false, true in found)

    low, high = _NOISE_RANGE
    if not is_refuted(high):
        return NoiseProof(0.0, math.inf)
    while high / low > 1 + _NOISE_ERROR:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_refuted(middle) else (middle, high)
    # So much noise is refuted; there was less, so at least this epsilon was spent.
    return NoiseProof(SampledGaussian(claim.rate, claim.steps, high).epsilon(delta), high)


def _highest(successes: int, trials: int, level: float) -> float:
    """Upper end of a probability's interval (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404)."""
    return 1.0 if successes == trials else float(stats.beta.ppf(1 - level, successes + 1, trials - successes))


def _survival(masses: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(masses[::-1])])


@lru_cache(maxsize=512)
def _ratios(mechanism: SampledGaussian) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masses of the ratio's logarithm without and with the patient, and its values, for all steps together."""
    rate, noise = mechanism.rate, mechanism.noise
    edge = -float(stats.norm.ppf(_TAIL)) * noise
    low, high = (float(mechanism.evidence(np.array(x))) for x in (-edge, 1 + edge))
    edges = (np.arange(math.floor(low / _GRID), math.ceil(high / _GRID) + 2) - 0.5) * _GRID
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = np.exp(edges) - (1 - rate)  # the ratio is never below 1 - rate
        x = np.where(beyond > 0, noise**2 * np.log(beyond / rate) + 0.5, -np.inf)
    below, below_shifted = stats.norm.cdf(x / noise), stats.norm.cdf((x - 1) / noise)
    out = np.diff(below)
    with_patient = np.diff((1 - rate) * below + rate * below_shifted)
    first = round((edges[0] + _GRID / 2) / _GRID)
    total_out, total_with = out, with_patient
    for _ in range(mechanism.steps - 1):
        total_out, total_with = _convolve(total_out, out), _convolve(total_with, with_patient)
    return total_out, total_with, (mechanism.steps * first + np.arange(len(total_out))) * _GRID


def _convolve(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    size = len(one) + len(other) - 1
    found = np.fft.irfft(np.fft.rfft(one, size) * np.fft.rfft(other, size), size)
    return np.maximum(found, 0.0)
