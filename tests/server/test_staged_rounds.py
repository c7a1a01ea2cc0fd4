"""The round loop through the three stages: who is asked in which, and what a run that stopped goes on with."""

import numpy as np
import pytest

from dsm_core.classes import ClassKind
from dsm_core.config import PriorConfig, TumorsConfig
from dsm_core.data import ClassContract, LabelContract
from tests.server.answering_sites import CLASSES, REFERENCE, rounds_with

THREE = {"prior": PriorConfig(rounds=2), "tumors": TumorsConfig(rounds=2)}
STAGED = {"prior.weight": np.zeros(2, np.float32), "tumors.weight": np.zeros(2, np.float32), **REFERENCE}


def staged_rounds(rounds, state=None, kinds=(ClassKind.ORGAN, ClassKind.LESION)):
    """Rounds of three stages with a site `organs` and a site `lesions`, and what each was asked to train."""
    asked = {}

    def behave(site, request, _):
        asked.setdefault(request.order.round, (request.order.stage, request.order.stage_round, []))[2].append(site)
        return np.random.default_rng([len(site), request.order.round]).normal()

    contracts = {
        f"{kind}s": LabelContract(f"{kind}s", 2, {name: ClassContract(kind, None, 2)})
        for name, kind in zip(CLASSES, kinds, strict=True)
    }
    found = rounds_with(
        behave, rounds=2, sites=sorted(contracts), state=state, contracts=contracts, start=STAGED,
        stop=rounds, **THREE,
    )  # fmt: skip
    return found, {round: (stage, number, sorted(sites)) for round, (stage, number, sites) in asked.items()}


def test_stages_follow_one_another_and_only_sites_that_can_teach_one_are_asked():
    state, asked = staged_rounds(6)
    assert asked == {
        1: ("organs", 1, ["organs"]), 2: ("organs", 2, ["organs"]),
        3: ("prior", 1, ["lesions", "organs"]), 4: ("prior", 2, ["lesions", "organs"]),
        5: ("tumors", 1, ["lesions"]), 6: ("tumors", 2, ["lesions"]),
    }  # fmt: skip
    assert [(r["stage"], r["stage_round"], r["rounds"]) for r in state.history] == [
        (stage, number, 6) for stage in ("organs", "prior", "tumors") for number in (1, 2)
    ]
    assert all(state.arrays[key].any() for key in STAGED)


@pytest.mark.parametrize("stop", range(1, 6))
def test_run_stopped_anywhere_goes_on_bit_for_bit_across_its_stages(stop):
    whole, _ = staged_rounds(6)
    stopped, _ = staged_rounds(stop)
    assert stopped.round == stop
    resumed, _ = staged_rounds(6, state=stopped)
    assert resumed.arrays.keys() == whole.arrays.keys()
    assert all(resumed.arrays[key].tobytes() == whole.arrays[key].tobytes() for key in whole.arrays)


def test_stage_that_no_site_can_teach_is_left_out(caplog):
    state, asked = staged_rounds(6, kinds=(ClassKind.ORGAN,) * 2)
    assert [stage for stage, _, _ in asked.values()] == ["organs", "organs", "prior", "prior"]
    assert "stage tumors is left out" in caplog.text
    assert state.round == 6
    assert not state.arrays["tumors.weight"].any()
