"""What does private training cost, and how much noise keeps a whole run within its price? Opacus' accountants.

The unit is the patient: two neighbouring sites differ in all patches of one patient (added or removed). Poisson
sampling of patients, Gaussian noise; Renyi bound (Mironov et al. 2019, arXiv:1908.10530) or numerical composition of
privacy loss (PRV, Gopi et al. 2021, arXiv:2106.02848), both upper bounds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp

from client.ledger import Charge, History
from client.privacy.faults import PrivacyError

KINDS = ("prv", "rdp")
_NOISE_ERROR = 0.002  # relative, when searching the noise
_MOST_NOISE = 1e4
# PRV's time grows with epsilon over its error and with the different charges: seconds up to these, then minutes.
_PRV_UP_TO, _PRV_KINDS, _PRV_ERROR = 20.0, 6, 0.005
_ORDERS = tuple(RDPAccountant.DEFAULT_ALPHAS)


@dataclass(frozen=True)
class PatientAccountant:
    """Composes charges over the same patients.

    Attributes:
        kind: "prv" is tighter, "rdp" quicker. RDP stands in for PRV where that takes minutes or cannot be computed.
    """

    kind: str = "prv"

    def epsilon(self, charges: Sequence[Charge], delta: float) -> float:
        """Spent by all charges together."""
        merged = _merged(charges)
        bound = _rdp_epsilon(merged, delta)
        if self.kind == "rdp" or not merged or bound > _PRV_UP_TO or len(merged) > _PRV_KINDS:
            return bound
        return min(bound, _prv_epsilon(merged, delta, eps_error=max(0.01, _PRV_ERROR * bound)))

    def is_within(self, charges: Sequence[Charge], delta: float, epsilon: float) -> bool:
        """True where all charges together spend at most `epsilon`; quick while the Renyi bound suffices."""
        return _rdp_epsilon(_merged(charges), delta) <= epsilon or self.epsilon(charges, delta) <= epsilon

    def noise_for(self, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
        """Least noise multiplier, within 0.2 %, whose `steps` steps spend at most `epsilon`.

        Raises:
            PrivacyError: no noise is enough.
        """
        return _noise_for(self, epsilon, delta, sampling_rate, steps)


@dataclass(frozen=True)
class Spending:
    """How far a site's patients are from its ceiling.

    Attributes:
        epsilon: spent, by every charge of the ledger together, at `delta`. ceiling: of that epsilon.
        steps: private steps that were paid for.
    """

    epsilon: float
    ceiling: float
    delta: float
    steps: int

    @classmethod
    def of(cls, history: History) -> Spending:
        spent = PatientAccountant().epsilon(history.charges, history.delta)
        return cls(spent, history.epsilon, history.delta, sum(charge.steps for charge in history.charges))


def _merged(charges: Sequence[Charge]) -> tuple[Charge, ...]:
    """Charges of equal rate and noise as one: their order and grouping make no difference."""
    steps: dict[tuple[float, float], int] = {}
    for charge in charges:
        key = (charge.sampling_rate, charge.noise_multiplier)
        steps[key] = steps.get(key, 0) + charge.steps
    return tuple(Charge(*key, steps=count) for key, count in sorted(steps.items()))


def _rdp_epsilon(charges: tuple[Charge, ...], delta: float) -> float:
    if not charges:
        return 0.0
    total = sum(charge.steps * _rdp_of_step(charge.sampling_rate, charge.noise_multiplier) for charge in charges)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the largest alpha": a bound all the same
        return float(rdp.get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)[0])


@lru_cache(maxsize=4096)
def _rdp_of_step(sampling_rate: float, noise_multiplier: float) -> np.ndarray:
    return np.asarray(rdp.compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=_ORDERS))


@lru_cache(maxsize=256)
def _prv_epsilon(charges: tuple[Charge, ...], delta: float, eps_error: float) -> float:
    """Infinite where the numbers cannot be computed."""
    accountant = PRVAccountant()
    accountant.history = [(c.noise_multiplier, c.sampling_rate, c.steps) for c in charges]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = accountant.get_epsilon(delta, eps_error=eps_error)
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        return math.inf
    return float(found) if math.isfinite(found) and found >= 0 else math.inf


@lru_cache(maxsize=256)
def _noise_for(accountant: PatientAccountant, epsilon: float, delta: float, rate: float, steps: int) -> float:
    def spends_more(noise: float) -> bool:
        return not accountant.is_within([Charge(rate, noise, steps)], delta, epsilon)

    high = 1.0
    while spends_more(high):
        high *= 2
        if high > _MOST_NOISE:
            raise PrivacyError(
                f"no noise keeps {steps} steps at rate {rate:g} within epsilon={epsilon:g}, delta={delta:g}; "
                f"raise privacy.epsilon or privacy.delta, or train fewer rounds"
            )
    low = high / 2
    while not spends_more(low):
        low, high = low / 2, low
    while high - low > _NOISE_ERROR * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spends_more(middle) else (low, middle)
    return high
