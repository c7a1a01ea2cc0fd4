"""A sweep's words become runs as Hydra's multirun makes them; what cannot be is named before training."""

from __future__ import annotations

import math

import pytest

from dsm_core.config_words import compose_config
from simulations.sweep.plan import PRESETS, SweepError, plan_sweep

PUBLIC = ("public.seed=9", "public.rounds=3")


def names(*words):
    return [point.name for point in plan_sweep(words).points]


def test_every_combination_is_a_run_and_its_words_are_those_of_dsm_simulate():
    plan = plan_sweep(["privacy.epsilon=1,8", "seed=0,1", "rounds=7"])
    assert {point.name for point in plan.points} == {f"epsilon_{e}-seed_{s}" for e in (1, 8) for s in (0, 1)}
    config = compose_config(next(p.words for p in plan.points if p.name == "epsilon_8-seed_1"))
    assert (config.privacy.mode, config.privacy.epsilon, config.seed, config.rounds) == ("dp_sgd", 8.0, 1, 7)
    assert (config.compare, config.overlays) == ("none", 0)
    assert all(compose_config([f"name={point.name}"]).name == point.name for point in plan.points)


def test_hydras_ranges_are_understood():
    assert names("privacy.epsilon=4", "seed=range(0,3)") == ["epsilon_4-seed_0", "epsilon_4-seed_1", "epsilon_4-seed_2"]


def test_without_privacy_its_settings_make_no_difference_and_no_further_run():
    plan = plan_sweep(["privacy.epsilon=8,inf", "privacy.trained=everything,adapters", "seed=0,1"])
    open_runs = [point for point in plan.points if point.epsilon == math.inf]
    assert [point.name for point in open_runs] == ["epsilon_inf-seed_0", "epsilon_inf-seed_1"]
    assert all(compose_config(point.words).privacy.mode == "none" for point in open_runs)
    assert len(plan.points) == 2 + 4


@pytest.mark.parametrize("words", [("text.weights=a/b,a_b",), ("sites_dir=a/b,a_b",), ("privacy.epsilon=1,1.0000001",)])
def test_two_runs_of_one_name_are_refused(words):
    with pytest.raises(SweepError, match="two different runs would both be named"):
        plan_sweep(words)


def test_checkpoint_takes_the_place_of_the_presets_public_run():
    plan = plan_sweep(["quick", "public.checkpoint=mine"])
    assert (plan.checkpoint, plan.public) == ("mine", ())
    with pytest.raises(SweepError, match=r"names a start and public\.rounds would train one"):
        plan_sweep(["quick", "public.checkpoint=mine", "public.rounds=3"])


def test_run_on_public_data_takes_over_no_word_of_privacy():
    assert not [word for word in plan_sweep(["full"]).public if word.startswith("privacy.")]


def test_epsilon_zero_scores_the_public_start_alone():
    alone = plan_sweep(["privacy.epsilon=0,1", "rounds=5", *PUBLIC]).points[0]
    assert alone.kind == "start alone"
    assert "rounds=0" in alone.words
    assert "rounds=5" not in alone.words
    with pytest.raises(SweepError, match=r"scores the public start alone, and there is none"):
        plan_sweep(["privacy.epsilon=0,1"])


def test_public_words_change_the_public_run_only():
    plan = plan_sweep(["privacy.epsilon=1", "rounds=5", *PUBLIC])
    public, private = compose_config(plan.public), compose_config(plan.points[0].words)
    assert (public.seed, public.rounds, public.privacy.mode) == (9, 3, "none")
    assert (private.seed, private.rounds) == (0, 5)


def test_private_patients_are_never_taken_for_public_ones(tmp_path):
    plan = plan_sweep(["privacy.epsilon=1", f"sites_dir={tmp_path}", f"eval_dir={tmp_path}", *PUBLIC])
    public = compose_config(plan.public)
    assert (public.sites_dir, public.eval_dir) == (None, None)
    with pytest.raises(SweepError, match=r"public\.seed=1 generates the very patients of epsilon_8-seed_1"):
        plan_sweep(["privacy.epsilon=8", "seed=0,1", "public.seed=1", "public.phantom.contrast=native"])
    with pytest.raises(SweepError, match="is what epsilon_1 trains privately on"):
        plan_sweep(["privacy.epsilon=1", f"sites_dir={tmp_path}", f"public.sites_dir={tmp_path}/."])


def test_of_a_word_said_twice_the_last_counts_so_that_presets_can_be_changed():
    plan = plan_sweep(["full", "privacy.epsilon=2", "seed=5", "phantom.cases=3"])
    assert [point.name for point in plan.points] == ["epsilon_2"]
    assert compose_config(plan.points[0].words).phantom.cases == 3


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_hold_the_lines_that_a_curve_needs(preset):
    plan = plan_sweep([preset])
    assert {point.kind for point in plan.points} == {"private", "not private", "start alone"}
    private = {point.epsilon for point in plan.points if point.kind == "private"}
    assert private >= ({1, 2, 4, 8} if preset == "full" else {1, 8})
    configs = [compose_config([w for w in point.words if w != "rounds=0"]) for point in plan.points]
    assert compose_config(plan.public).seed not in {config.seed for config in configs}
    assert compose_config(plan.public).model == configs[0].model
    assert {config.prior.rounds + config.tumors.rounds for config in configs} == {0}


def test_full_preset_is_what_is_promised():
    plan = plan_sweep(["full"])
    configs = [compose_config([w for w in point.words if w != "rounds=0"]) for point in plan.points]
    assert {config.phantom.cases for config in configs} == {64}
    assert {config.seed for config in configs} == {0, 1, 2}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["privacy.epsilon=1,banana"], "wants numbers, 0 or inf, found 'banana'"),
        (["privacy.epsilon=-1"], "privacy.epsilon wants a number above 0"),
        (["privacy.epsilon=1", "privacy.delta=2"], "privacy.delta wants a chance"),
        (["privacy.epsilon=1", "privacy.trained=heads"], "privacy.trained wants one of"),
        (["privacy.epsilon=1,2", "round=3"], "round"),
        (["privacy.mode=none"], "follows from privacy.epsilon"),
        (["resume=x"], "the same command again"),
        (["slow"], "presets are full, quick"),
        (["full", "quick"], "one preset is wanted"),
        (["name=a,b"], "one value is wanted"),
        (["public.seed=1,2"], "one value is wanted"),
        (["public.checkpoint=x", "public.seed=1"], "leave one of them"),
        (["seed=1,"], "seed"),
    ],
)
def test_bad_words_are_named(words, wanted):
    with pytest.raises(SweepError, match=wanted):
        plan_sweep(words)


def test_one_fault_of_many_runs_is_said_once_with_their_names():
    with pytest.raises(SweepError) as fault:
        plan_sweep(["privacy.epsilon=1,2", "train.lr=-1"])
    assert f"{fault.value}".count("train.lr wants") == 1
    assert "epsilon_1, epsilon_2" in f"{fault.value}"


def test_sweep_is_known_again_by_its_fixed_words_whatever_is_swept():
    first, more, other = (
        plan_sweep(words)
        for words in (["privacy.epsilon=1,2", "rounds=5"], ["privacy.epsilon=1,2,4", "rounds=5"], ["rounds=6"])
    )
    assert first.fixed == more.fixed != other.fixed
