"""A private simulation spends what it was asked to, from ledgers of its own or from the site's."""

from __future__ import annotations

import json

import pytest

from client.ledger import LEDGER_NAME, Ledger
from client.ledger_lines import Charge
from client.privacy import PatientAccountant
from dsm_core.config import PrivacyConfig
from simulations.ledgers import open_ledgers, read_budgets

PRIVATE = PrivacyConfig(mode="dp_sgd", epsilon=3.0)


@pytest.fixture
def sites(tmp_path):
    folders = {}
    for name, cases in (("mercy", 5), ("hope", 2)):
        folders[name] = tmp_path / "sites" / name
        for part in ("imagesTr", "labelsTr"):
            (folders[name] / part).mkdir(parents=True)
            for number in range(cases):
                (folders[name] / part / f"p{number}.nii").touch()
        (folders[name] / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    return folders


def test_each_site_gets_a_ceiling_of_what_is_asked_at_a_delta_for_its_patients(sites, tmp_path):
    mercy, hope = open_ledgers(tmp_path / "run", sites, PRIVATE)
    assert Ledger(mercy, "mercy").read().epsilon == 3.0
    assert (Ledger(mercy, "mercy").read().delta, Ledger(hope, "hope").read().delta) == (1 / 25, 1 / 4)
    stated = PrivacyConfig(mode="dp_sgd", delta=1e-4)
    assert Ledger(open_ledgers(tmp_path / "other", sites, stated)[0], "mercy").read().delta == 1e-4


def test_ledger_of_the_site_itself_is_kept_to_and_an_interrupted_runs_goes_on(sites, tmp_path):
    own = sites["hope"] / LEDGER_NAME
    Ledger(own, "hope").create(epsilon=1.0, delta=0.1)
    first = open_ledgers(tmp_path / "run", sites, PRIVATE)
    assert first == open_ledgers(tmp_path / "run", sites, PRIVATE) == [tmp_path / "run" / "mercy.jsonl", own]


def test_open_simulation_makes_none(sites, tmp_path):
    assert open_ledgers(tmp_path / "run", sites, PrivacyConfig()) == []
    assert not (tmp_path / "run").exists()


def test_budgets_are_what_the_ledgers_say_and_whose_they_are(sites, tmp_path):
    own = sites["hope"] / LEDGER_NAME
    Ledger(own, "hope").create(epsilon=1.0, delta=0.1)
    ledgers = dict(zip(sites, open_ledgers(tmp_path / "run", sites, PRIVATE), strict=True))
    Ledger(ledgers["mercy"], "mercy", PatientAccountant()).charge(Charge(0.2, 2.0, 7))
    budgets = read_budgets(ledgers)
    spent = PatientAccountant().epsilon([Charge(0.2, 2.0, 7)], 1 / 25)
    assert budgets["mercy"] == {"spent": spent, "ceiling": 3.0, "delta": 1 / 25, "steps": 7, "ledger": "of this run"}
    assert budgets["hope"]["spent"] == 0
    assert budgets["hope"]["ledger"] == "the site's own, every run"
