"""Rows of runs and means over seeds, by numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from client.ledger import Charge, Ledger
from client.privacy import PatientAccountant
from simulations.privacy_audit import AuditError
from simulations.sweep.audited import AuditedBound, audited_bounds
from simulations.sweep.plan import plan_sweep
from simulations.sweep.results import Interval, group_rows, read_rows
from simulations.sweep.table import format_rows, write_table

WORDS = ("privacy.epsilon=8,inf", "privacy.trained=adapters,queries", "seed=0,1", "prior.rounds=0")


def cells(organ, lesion=0.1):
    return {
        ("site_a", "liver", "local"): organ,
        ("site_b", "liver", "foreign"): organ + 0.1,
        ("site_a", "liver tumor", "local"): lesion,
        ("site_a", "spleen tumor", "unseen"): 0.9,
    }


def test_interval_is_students():
    assert Interval.of([]) is None
    assert Interval.of([0.5]) == Interval(0.5, None, 1)
    found = Interval.of([0.4, 0.5, 0.6])
    assert found.mean == pytest.approx(0.5)
    assert found.half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)


def test_scores_are_means_over_what_some_site_labels_and_shares_compare_with_training_without_privacy(folder, finish):
    plan = plan_sweep(WORDS)
    for seed, organ in ((0, 0.8), (1, 0.7)):
        finish(f"epsilon_inf-seed_{seed}", cells(organ))
        finish(f"epsilon_8-trained_adapters-seed_{seed}", cells(organ - 0.2))
    groups = {(group.epsilon, group.label): group for group in group_rows(read_rows(folder, plan))}
    open_runs, adapters = groups[math.inf, ""], groups[8.0, "trained adapters"]
    assert open_runs.organs.mean == pytest.approx(0.8)
    assert open_runs.lesions.mean == pytest.approx(0.1)
    assert open_runs.dice.mean == pytest.approx((0.8 + 0.9 + 0.1 + 0.7 + 0.8 + 0.1) / 6)
    assert adapters.share == pytest.approx(0.6 / 0.8)
    assert groups[8.0, "trained queries"].organs is None


def test_what_private_training_adds_is_held_against_what_open_training_adds(folder, finish):
    plan = plan_sweep(["privacy.epsilon=0,8,inf", "public.seed=9", "public.rounds=3"])
    for name, organ in (("epsilon_0", 0.4), ("epsilon_8", 0.5), ("epsilon_inf", 0.8)):
        finish(name, cells(organ))
    groups = {group.epsilon: group for group in group_rows(read_rows(folder, plan))}
    assert groups[8.0].gained == pytest.approx(0.25)
    assert (groups[0.0].gained, groups[math.inf].gained) == (0.0, 1.0)


def test_gain_is_held_against_the_one_start_whatever_rounds_are_swept(folder, finish):
    plan = plan_sweep(["privacy.epsilon=0,8,inf", "rounds=10,20", "public.seed=9", "public.rounds=3"])
    finish("epsilon_0", cells(0.4))
    for rounds, private in ((10, 0.5), (20, 0.6)):
        finish(f"epsilon_8-rounds_{rounds}", cells(private))
        finish(f"epsilon_inf-rounds_{rounds}", cells(0.8))
    gained = {group.label: group.gained for group in group_rows(read_rows(folder, plan)) if group.epsilon == 8}
    assert gained == {"rounds 10": pytest.approx(0.25), "rounds 20": pytest.approx(0.5)}


def test_nothing_gained_is_shown_without_a_sign(folder, finish):
    plan = plan_sweep(["privacy.epsilon=0,8,inf", "public.seed=9", "public.rounds=3"])
    for name, organ in (("epsilon_0", 0.4), ("epsilon_8", 0.399), ("epsilon_inf", 0.8)):
        finish(name, cells(organ))
    rows = read_rows(folder, plan)
    text = format_rows(group_rows(rows), rows)
    assert "-0%" not in text
    assert text.count(" 0%") == 2


def test_each_class_has_its_mean_over_sites_and_seeds_and_none_where_no_site_labels_it(folder, finish):
    plan = plan_sweep(["privacy.epsilon=inf", "seed=0,1"])
    finish("epsilon_inf-seed_0", cells(0.8))
    finish("epsilon_inf-seed_1", cells(0.6))
    (open_runs,) = group_rows(read_rows(folder, plan))
    assert {name: pytest.approx(dice.mean) for name, dice in open_runs.classes.items()} == {
        "liver": 0.75, "liver tumor": 0.1
    }  # fmt: skip


def test_lesions_that_no_run_learns_have_no_score(folder, finish):
    plan = plan_sweep(["privacy.epsilon=inf", "tumors.rounds=0", "public.seed=9", "public.rounds=3"])
    finish("epsilon_inf", cells(0.8))
    row = read_rows(folder, plan)[0]
    assert row.lesions is None
    assert row.dice == row.organs == pytest.approx(0.85)
    assert plan_sweep(["privacy.epsilon=inf", "tumors.rounds=0", "public.seed=9", "public.tumors.rounds=3"]).has_lesions


def test_failed_and_missing_runs_are_named_and_a_run_that_succeeds_later_is_not(folder, finish):
    plan = plan_sweep(["privacy.epsilon=1,8,inf"])
    finish("epsilon_inf", cells(0.8))
    folder.note_failure("epsilon_1", "refused: budget")
    rows = read_rows(folder, plan)
    assert {row.name: row.status for row in rows} == {
        "epsilon_1": "failed", "epsilon_8": "missing", "epsilon_inf": "done"
    }  # fmt: skip
    assert "FAILED epsilon_1: refused: budget" in format_rows(group_rows(rows), rows)
    finish("epsilon_1", cells(0.5))
    assert [row.status for row in read_rows(folder, plan)].count("failed") == 0


def test_spent_is_the_largest_of_the_sites_ledgers(folder, finish):
    finish("epsilon_8", cells(0.6))
    ledgers = folder.run("epsilon_8") / "ledgers" / "federated"
    ledgers.mkdir(parents=True)
    for site, steps in (("site_a", 10), ("site_b", 90)):
        ledger = Ledger(ledgers / f"{site}.jsonl", site, PatientAccountant())
        ledger.create(8.0, 1e-3)
        ledger.charge(Charge(0.25, 2.0, steps))
    row = read_rows(folder, plan_sweep(["privacy.epsilon=8"]))[0]
    assert row.spent == PatientAccountant().epsilon([Charge(0.25, 2.0, 90)], 1e-3)


def test_best_attack_of_each_claim_counts_and_the_one_without_privacy_does_not(folder, attack):
    assert audited_bounds(folder) == []
    attack((None, 5.0), (8.0, 0.4), (8.0, 1.3), (1.0, 0.0))
    assert audited_bounds(folder) == [AuditedBound(1.0, 0.0, 0.95), AuditedBound(8.0, 1.3, 0.95)]


def test_damaged_audit_is_named_and_not_taken_for_none(folder):
    folder.path.mkdir()
    (folder.path / "audit.json").write_text("{}")
    with pytest.raises(AuditError, match=r"audit\.json cannot be read"):
        audited_bounds(folder)


def test_table_is_json_that_every_reader_takes(folder, finish):
    plan = plan_sweep(["privacy.epsilon=8,inf"])
    finish("epsilon_inf", cells(0.8))
    rows = read_rows(folder, plan)
    write_table(folder, rows, group_rows(rows))
    content = json.loads(folder.table.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [entry["epsilon"] for entry in content["settings"]] == [8.0, "inf"]
