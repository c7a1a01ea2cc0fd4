"""A site that keeps a ledger, or says that it does, trains privately or not at all."""

from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict

from client.budget import Budget
from client.ledger import LEDGER_NAME, BudgetRefused, Charge, Ledger
from client.site_file import SiteFileError, read_site_file
from client.whereabouts import budget


class Steps:
    def is_within(self, charges, delta, epsilon):
        return sum(charge.steps for charge in charges) <= epsilon


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    return tmp_path / "data"


def at(data, **node):
    return budget(Context(1, 2, {"site-dir": str(data), **node}, RecordDict(), {}))


def test_site_without_a_ledger_may_train_openly(data):
    assert at(data) == Budget(data / LEDGER_NAME)
    assert not at(data).wants_privacy


def test_ledger_in_the_data_folder_counts_though_its_disk_is_away(data):
    (data / LEDGER_NAME).symlink_to("/nowhere/ledger")
    assert at(data).wants_privacy


def test_ledger_that_is_named_and_missing_is_lost_not_absent(data, tmp_path):
    own = at(data, **{"privacy-ledger": str(tmp_path / "lost.jsonl")})
    assert own == Budget(tmp_path / "lost.jsonl", is_named=True)
    assert own.wants_privacy


def test_site_file_names_a_ledger_from_its_own_folder_and_a_ceiling(data, tmp_path):
    (tmp_path / "site.yaml").write_text("data: data\nledger: safe/ledger.jsonl\nepsilon_ceiling: 3\n")
    own = at(data, **{"site-file": str(tmp_path / "site.yaml")})
    assert own == Budget(tmp_path / "safe" / "ledger.jsonl", is_named=True, ceiling=3.0)
    (tmp_path / "site.yaml").write_text("data: data\nledger: [1]\n")
    with pytest.raises(SiteFileError, match=r"ledger: found \[1\], wanted a file that `dsm-site ledger create` made"):
        read_site_file(tmp_path / "site.yaml")


def test_two_orders_within_the_ceiling_do_not_pass_it_together(tmp_path):
    Ledger(tmp_path / "ledger", "mercy").create(epsilon=100.0, delta=1e-3)
    ledger = Budget(tmp_path / "ledger", ceiling=4.0).open("mercy", Steps())
    ledger.charge(Charge(0.5, 1.0, 3))
    with pytest.raises(BudgetRefused, match="ceiling epsilon=4"):
        ledger.charge(Charge(0.5, 1.0, 3))
