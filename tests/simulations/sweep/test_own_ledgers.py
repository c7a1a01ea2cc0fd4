"""Runs over patients whose site keeps a ledger add up there; runs over simulated patients do not."""

from __future__ import annotations

import json
import re

import pytest

from client.ledger import LEDGER_NAME, Charge, Ledger
from client.privacy import PatientAccountant
from simulations.sweep import run as sweep
from simulations.sweep.own_ledgers import check_own_ledgers
from simulations.sweep.plan import SweepError, plan_sweep


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "sites" / "hope"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for number in range(10):
            (folder / part / f"p{number}.nii").touch()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    return folder


def points(site, *words):
    fixed = (f"sites_dir={site.parent}", "data.held_out=0.2", "train.batch=2", "rounds=4", "privacy.accountant=rdp")
    return plan_sweep([*fixed, *words]).points


def test_simulated_sites_have_nothing_to_compose(site):
    assert check_own_ledgers(points(site, "privacy.epsilon=1,8,inf")) == []


def composed(site, *words):
    (line,) = check_own_ledgers(points(site, *words))
    return float(re.search(r"make epsilon ([\d.]+)", line)[1])


def test_private_runs_compose_with_each_other_and_with_what_was_spent_before(site):
    ledger = Ledger(site / LEDGER_NAME, "hope", PatientAccountant())
    ledger.create(epsilon=20.0, delta=0.01)
    one = composed(site, "privacy.epsilon=4")
    two = composed(site, "privacy.epsilon=2,4")
    assert 2 < one <= 4 < two < 6
    ledger.charge(Charge(0.5, 1.0, 5))
    assert composed(site, "privacy.epsilon=2,4") > two + 0.5
    ledger.set_ceiling(two)
    with pytest.raises(SweepError, match=r"hope keeps a ledger .* 2 private runs on top of its 1 charges .* fewer"):
        check_own_ledgers(points(site, "privacy.epsilon=2,4"))


def test_sweep_above_a_ceiling_trains_nothing_and_a_damaged_ledger_is_named(site, tmp_path, capsys):
    words = [f"sites_dir={site.parent}", "train.batch=2", "rounds=4", f"out={tmp_path / 'runs'}", "privacy.epsilon=8"]
    Ledger(site / LEDGER_NAME, "hope", PatientAccountant()).create(epsilon=1.0, delta=0.01)
    assert sweep.main(words) == 2
    assert "its ceiling is 1" in capsys.readouterr().err
    (site / LEDGER_NAME).write_text("nonsense")
    assert sweep.main(words) == 2
    assert LEDGER_NAME in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
