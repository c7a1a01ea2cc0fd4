"""Rounds and stages: which round belongs to which, and what moves in it."""

from __future__ import annotations

import pytest

from dsm_core.classes import ClassKind
from dsm_core.config import Config, PriorConfig, PrivacyConfig, TumorsConfig
from dsm_core.stages import MOVING, STAGES, stage_of, stages_of, total_rounds


def run_of(organs: int, prior: int, tumors: int) -> Config:
    return Config(rounds=organs, prior=PriorConfig(rounds=prior, lr=0.5), tumors=TumorsConfig(rounds=tumors))


def test_rounds_count_on_from_stage_to_stage() -> None:
    config = run_of(3, 2, 4)
    found = [(stage_of(config, r).name, stage_of(config, r).round_of(r)) for r in range(1, total_rounds(config) + 1)]
    assert found == [
        *(("organs", r) for r in (1, 2, 3)),
        *(("prior", r) for r in (1, 2)),
        *(("tumors", r) for r in (1, 2, 3, 4)),
    ]


@pytest.mark.parametrize(("rounds", "names"), [((5, 0, 0), ["organs"]), ((5, 0, 2), ["organs", "tumors"])])
def test_stage_of_no_rounds_is_left_out(rounds: tuple[int, int, int], names: list[str]) -> None:
    assert [stage.name for stage in stages_of(run_of(*rounds))] == names
    assert total_rounds(run_of(*rounds)) == sum(rounds)


@pytest.mark.parametrize("round", [0, 10])
def test_round_outside_the_run_is_named(round: int) -> None:
    with pytest.raises(ValueError, match=f"round {round} of a run of 9 rounds"):
        stage_of(run_of(3, 2, 4), round)


def test_every_stage_has_a_rate_of_its_own() -> None:
    assert [stage.lr for stage in stages_of(run_of(1, 1, 1))] == [Config().train.lr, 0.5, Config().tumors.lr]


def test_stages_share_no_tensor_but_the_rows_which_differ_by_kind_and_never_move_the_evidence() -> None:
    tensors = dict.fromkeys(["encoder.x", "prior.x", "tumors.x", "class_rows.residual.weight", "class_rows.evidence"])
    parts = {stage: set(MOVING[stage].part(tensors)) for stage in STAGES}
    assert parts["organs"] == {"encoder.x", "class_rows.residual.weight"}
    assert parts["prior"] == {"prior.x"}
    assert parts["tumors"] == {"tumors.x", "class_rows.residual.weight"}
    assert set(MOVING["organs"].kinds).isdisjoint(MOVING["tumors"].kinds)


def test_a_site_teaches_what_it_has_labelled_and_every_scan_teaches_the_prior() -> None:
    taught = {stage: MOVING[stage].is_taught_by([ClassKind.LESION]) for stage in STAGES}
    assert taught == {"organs": False, "prior": True, "tumors": True}


def test_privacy_has_a_factor_on_every_rate_and_training_without_it_has_none() -> None:
    config = run_of(1, 1, 1)
    config.privacy = PrivacyConfig(mode="dp_sgd", lr_factor=10.0)
    assert [stage.lr for stage in stages_of(config)] == [10 * Config().train.lr, 5.0, 10 * Config().tumors.lr]
    config.privacy = PrivacyConfig(lr_factor=10.0)
    assert [stage.lr for stage in stages_of(config)] == [Config().train.lr, 0.5, Config().tumors.lr]
