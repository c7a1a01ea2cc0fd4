"""How much do attacks learn from private training, against what it promises? Every attack, without privacy and with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from client.privacy import PatientAccountant
from dsm_core.config import PrivacyConfig
from simulations.benchmarks.table import Check
from simulations.privacy_audit import bounds, gaussian, updates
from simulations.privacy_audit.beside import beside_the_noise, refuses_metrics
from simulations.privacy_audit.gaussian import SampledGaussian
from simulations.privacy_audit.inversion import Descent, Inversion, invert_update
from simulations.privacy_audit.released import attack_released_model
from simulations.privacy_audit.results import ANY, GAUSSIAN, MODEL, UPDATES, Finding, area_under_curve
from simulations.privacy_audit.rounds import Schedule
from simulations.privacy_audit.updates import Trials, attack_updates

# What an attack must prove of training without privacy, so that its silence about private training counts.
OPEN_AT_LEAST = {UPDATES: 3.0, MODEL: 1.0}
SEEN, UNSEEN = 0.6, 0.2  # a scan correlated so far with the truth is recovered; no further, it is not


@dataclass(frozen=True)
class Effort:
    """How much an audit runs.

    Attributes:
        open_runs, private_runs: runs of the attack on updates, `updates.CANARIES` canaries each.
        canaries, rounds: of the attack on the released model; a round has `local_steps` steps.
        inversion: how long an attacker looks for a scan.
    """

    open_runs: int
    private_runs: int
    canaries: int
    rounds: int
    inversion: Descent
    local_steps: int = 10

    def ticks(self, claims: int) -> int:
        """How often an audit of so many claims calls its `tick`."""
        return self.open_runs + claims * self.private_runs + (1 + claims) * self.rounds + 2 * self.inversion.ticks


QUICK = Effort(open_runs=40, private_runs=60, canaries=64, rounds=15, inversion=Descent(3, 60, 200))
FULL = Effort(open_runs=60, private_runs=1500, canaries=128, rounds=40, inversion=Descent(6, 60, 600))


@dataclass(frozen=True)
class Terms:
    """What is promised and how sure the audit is to be.

    Attributes:
        claims: epsilons of private runs.
        confidence: of every single bound.
    """

    claims: tuple[float, ...] = (8.0, 1.0)
    delta: float = 1e-5
    confidence: float = 0.95
    seed: int = 0

    def privacy(self, claim: float | None) -> PrivacyConfig:
        return PrivacyConfig() if claim is None else PrivacyConfig(mode="dp_sgd", epsilon=claim, delta=self.delta)


Tick = Callable[[int], object]


def audit_updates(terms: Terms, claim: float | None, runs: int, tick: Tick) -> list[Finding]:
    """Bounds from the updates of many short runs."""
    schedule = updates.SCHEDULE
    mechanism = _promised(terms, claim, schedule, updates.PATIENTS)
    trials = attack_updates(terms.privacy(claim), mechanism, runs, terms.seed, tick)
    found = [_any_mechanism(terms, claim, UPDATES, mechanism, trials)]
    if claim is not None:
        proof = gaussian.proven_epsilon(trials.evidence, trials.included, mechanism, terms.delta, terms.confidence)
        found.append(replace(found[0], method=GAUSSIAN, lower_bound=proof.epsilon, guesses=None, correct=None))
    return found


def audit_released_model(terms: Terms, claim: float | None, effort: Effort, tick: Tick) -> list[Finding]:
    """The bound from the model that one run with many canaries releases."""
    schedule = Schedule(effort.rounds, effort.local_steps, rate=3e-3, expected=8)
    privacy = replace(terms.privacy(claim), patches_per_patient=1)
    trials = attack_released_model(privacy, effort.canaries, schedule, terms.seed, tick)
    mechanism = _promised(terms, claim, schedule, effort.canaries)
    return [_any_mechanism(terms, claim, MODEL, mechanism, trials)]


def invert_both(terms: Terms, descent: Descent, tick: Tick) -> list[Inversion]:
    """A scan recovered from an unprotected update, and from one protected by the weakest claim."""
    return [invert_update(terms.privacy(claim), descent, terms.seed, tick) for claim in (None, max(terms.claims))]


def check_findings(terms: Terms, rows: Sequence[Finding], inversions: Sequence[Inversion]) -> list[Check]:
    """What must hold: attacks that succeed on open training, and no bound above a claim."""
    checks = []
    for row in rows:
        words = f"{row.method}, {row.surface}, lower bound"
        if row.claimed_epsilon is None:
            at_least = OPEN_AT_LEAST[row.surface]
            checks.append(Check.at_least(f"without privacy: {words}", round(row.lower_bound, 3), at_least))
        else:
            name = f"epsilon {row.claimed_epsilon:g}: {words}"
            checks.append(Check.at_most(name, round(row.lower_bound, 3), row.claimed_epsilon))
    for claim in terms.claims:
        mechanism = _promised(terms, claim, updates.SCHEDULE, updates.PATIENTS)
        name = f"epsilon {claim:g}: recomputed from the densities, without the accountant"
        checks.append(Check.at_most(name, round(mechanism.epsilon(terms.delta), 3), claim))
    private = terms.privacy(max(terms.claims))
    checks.append(Check.equal("private reply: what is not noised", beside_the_noise(private, terms.seed), []))
    checks.append(Check.equal("private reply with a loss: refused", refuses_metrics(private, terms.seed), True))
    seen, hidden = (inversion.similarity for inversion in inversions)
    checks.append(Check.at_least("scan from an unprotected update, correlation", round(seen, 3), SEEN))
    checks.append(Check.at_most("scan from a protected update, correlation", round(abs(hidden), 3), UNSEEN))
    return checks


def _any_mechanism(
    terms: Terms, claim: float | None, surface: str, mechanism: SampledGaussian, trials: Trials
) -> Finding:
    proof = bounds.proven_epsilon(trials.evidence, trials.included, terms.delta, terms.confidence)
    return Finding(
        claimed_epsilon=claim,
        surface=surface,
        method=ANY,
        lower_bound=proof.epsilon,
        confidence=terms.confidence,
        delta=terms.delta,
        canaries=len(trials.included),
        guesses=proof.guesses,
        correct=proof.correct,
        auc=area_under_curve(list(trials.evidence), list(np.asarray(trials.included, bool))),
        steps=mechanism.steps,
        sampling_rate=mechanism.rate,
        noise_multiplier=mechanism.noise or None,
    )


def _promised(terms: Terms, claim: float | None, schedule: Schedule, patients: int) -> SampledGaussian:
    """The mechanism that a claim stands for; of noise 0 without privacy."""
    rate, steps = schedule.expected / patients, schedule.rounds * schedule.local_steps
    if claim is None:
        return SampledGaussian(rate, steps, 0.0)
    noise = PatientAccountant(terms.privacy(claim).accountant).noise_for(claim, terms.delta, rate, steps)
    return SampledGaussian(rate, steps, noise)
