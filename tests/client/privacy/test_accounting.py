"""The accountant says what Opacus says, what published papers say, and composes whatever was spent before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp
from scipy.optimize import brentq
from scipy.stats import norm

from client.ledger import Charge
from client.privacy.accounting import PatientAccountant
from client.privacy.faults import PrivacyError

PRV, RDP = PatientAccountant("prv"), PatientAccountant("rdp")
RUN = Charge(sampling_rate=0.125, noise_multiplier=2.0, steps=500)
ABADI = Charge(sampling_rate=0.01, noise_multiplier=4.0, steps=10_000)


@pytest.mark.parametrize("charge", [RUN, ABADI, Charge(1.0, 30.0, 40)])
def test_one_run_costs_what_opacus_says(charge):
    for ours, stock in ((PRV, PRVAccountant()), (RDP, RDPAccountant())):
        stock.history = [(charge.noise_multiplier, charge.sampling_rate, charge.steps)]
        assert ours.epsilon([charge], 1e-4) == pytest.approx(stock.get_epsilon(1e-4), rel=0.01)


def test_moments_accountant_of_the_first_paper():
    """Abadi et al. 2016, arXiv:1607.00133, section 4: q=0.01, sigma=4, delta=1e-5, 10 000 steps: epsilon 1.26.

    They turn Renyi bounds into epsilon by log(1/delta)/(alpha-1); today's conversion of the same bounds is tighter.
    """
    orders = np.array(RDPAccountant.DEFAULT_ALPHAS)
    bounds = rdp.compute_rdp(q=0.01, noise_multiplier=4.0, steps=10_000, orders=orders)
    assert min(bounds + math.log(1e5) / (orders - 1)) == pytest.approx(1.26, abs=0.005)
    assert PRV.epsilon([ABADI], 1e-5) < RDP.epsilon([ABADI], 1e-5) < 1.26


def test_gaussian_mechanism_whose_cost_is_known_exactly():
    """Without sampling (q=1) the cost has a closed form (Balle and Wang 2018, arXiv:1805.06530, theorem 5)."""
    steps, sigma, delta = 100, 20.0, 1e-5
    mu = math.sqrt(steps) / sigma

    def excess(epsilon):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta

    exact, charge = brentq(excess, 0, 20), Charge(1.0, sigma, steps)
    assert exact <= PRV.epsilon([charge], delta) <= exact + 0.02
    assert exact <= RDP.epsilon([charge], delta) <= 1.15 * exact


def test_rounds_cost_what_their_run_costs_in_whatever_order():
    rounds = [Charge(0.125, 2.0, 5)] * 100
    other = [Charge(0.25, 4.0, 50)]
    for accountant in (PRV, RDP):
        assert accountant.epsilon(rounds, 1e-4) == accountant.epsilon([RUN], 1e-4)
        assert accountant.epsilon(rounds + other, 1e-4) == accountant.epsilon(other + rounds, 1e-4)


def test_different_runs_compose_to_more_than_each_and_no_more_than_their_sum():
    runs = [RUN, Charge(0.25, 4.0, 100), Charge(0.05, 1.0, 200)]
    for accountant in (PRV, RDP):
        alone = [accountant.epsilon([run], 1e-4) for run in runs]
        assert max(alone) < accountant.epsilon(runs, 3e-4) < sum(alone)


def test_nothing_spent_costs_nothing():
    assert PRV.epsilon([], 1e-5) == RDP.epsilon([], 1e-5) == 0.0


@pytest.mark.parametrize("accountant", [PRV, RDP])
def test_noise_for_a_whole_run_spends_the_target_and_hardly_less(accountant):
    for epsilon in (1.0, 8.0):
        noise = accountant.noise_for(epsilon, 1e-4, 0.125, 500)
        spent = accountant.epsilon([Charge(0.125, noise, 500)], 1e-4)
        assert 0.99 * epsilon < spent <= epsilon
        assert accountant.is_within([Charge(0.125, noise, 5)] * 100, 1e-4, epsilon)
        assert not accountant.is_within([Charge(0.125, noise, 5)] * 102, 1e-4, epsilon)


def test_tighter_accountant_wants_less_noise():
    assert PRV.noise_for(8.0, 1e-4, 0.125, 500) < RDP.noise_for(8.0, 1e-4, 0.125, 500)


def test_where_prv_would_take_minutes_the_renyi_bound_stands_in():
    many = [Charge(0.1 + 0.01 * i, 2.0, 50) for i in range(9)]
    assert PRV.epsilon(many, 1e-4) == RDP.epsilon(many, 1e-4)
    dear = [Charge(0.125, 0.4, 500)]
    assert PRV.epsilon(dear, 1e-4) == RDP.epsilon(dear, 1e-4) > 20


def test_target_that_no_noise_reaches_is_named():
    with pytest.raises(PrivacyError, match=r"no noise keeps 500 steps at rate 0\.3 within epsilon=1e-07"):
        RDP.noise_for(1e-7, 1e-12, 0.3, 500)
