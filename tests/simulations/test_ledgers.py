"""A private simulation spends what it was asked to, from ledgers of its own or from the site's."""

from __future__ import annotations

import json

import pytest

from client.ledger import LEDGER_NAME, Ledger
from client.ledger_lines import Charge
from client.privacy import PatientAccountant
from dsm_core.config import PrivacyConfig
from simulations.ledgers import open_ledgers, read_spending

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


def test_spending_is_what_the_ledgers_say_and_whose_they_are(sites, tmp_path):
    own = sites["hope"] / LEDGER_NAME
    Ledger(own, "hope").create(epsilon=2.0, delta=0.1)
    ledgers = open_ledgers(tmp_path / "run", sites, PRIVATE)
    before, charge = Charge(0.1, 4.0, 3), Charge(0.2, 2.0, 7)
    Ledger(own, "hope", PatientAccountant()).charge(before)
    for site, path in zip(sites, ledgers, strict=True):
        Ledger(path, site, PatientAccountant()).charge(charge)
    spending = read_spending(sites, ledgers)
    spent = PatientAccountant().epsilon([charge], 1 / 25)
    assert spending["mercy"] == {"epsilon": spent, "ceiling": 3.0, "delta": 1 / 25, "steps": 7, "ledger": "of this run"}
    assert spending["hope"]["epsilon"] == PatientAccountant().epsilon([before, charge], 0.1)
    assert spending["hope"]["steps"] == 10
    assert spending["hope"]["ledger"] == "the site's own, every run"


def test_ledger_that_was_lost_or_damaged_meanwhile_is_said_and_not_made_anew(sites, tmp_path):
    ledgers = open_ledgers(tmp_path / "run", sites, PRIVATE)
    ledgers[0].unlink()
    ledgers[1].write_bytes(ledgers[1].read_bytes().replace(b"3.0", b"9.0"))
    spending = read_spending(sites, ledgers)
    assert all("cannot be read" in row["fault"] and "epsilon" not in row for row in spending.values())
    assert f"{tmp_path}" not in json.dumps(spending)
    assert not ledgers[0].exists()
