"""The ledger counts every charge of every run, refuses to pass the ceiling, and never believes a damaged line."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import threading
from contextlib import suppress

import pytest

from client.ledger import BudgetRefused, Charge, Ledger, LedgerFault
from client.ledger_lines import read_history, seal

CHARGE = Charge(sampling_rate=0.1, noise_multiplier=1.0, steps=5)


class Steps:
    """Spends a hundredth of epsilon a step."""

    def is_within(self, charges, delta, epsilon):
        return sum(charge.steps for charge in charges) <= round(100 * epsilon)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", "mercy", Steps(), lock_timeout_s=0.2)
    ledger.create(epsilon=0.2, delta=1e-4)
    return ledger


def reopened(ledger, **changes):
    return Ledger(ledger.path, **{"site": "mercy", "accountant": Steps(), "lock_timeout_s": 0.2, **changes})


def test_charges_of_all_runs_add_up_and_one_above_the_ceiling_is_refused(ledger):
    ledger.charge(CHARGE, round=1)
    reopened(ledger).charge(Charge(0.5, 2.0, 10), round=1)
    ledger.charge(CHARGE, round=2)
    before = ledger.path.read_bytes()
    for ask in (ledger.check, ledger.charge):
        with pytest.raises(BudgetRefused, match=r"would pass the ceiling epsilon=0\.2"):
            ask(Charge(0.1, 1.0, 1))
    assert ledger.path.read_bytes() == before
    history = ledger.read()
    assert history.charges == (CHARGE, Charge(0.5, 2.0, 10), CHARGE)
    assert [entry.get("note") for entry in history.entries] == [None, {"round": 1}, {"round": 1}, {"round": 2}]


@pytest.mark.parametrize(("ceiling", "steps_left"), [(0.12, 7), (0.2, 15), (5.0, 15), (None, 15)])
def test_ceiling_of_the_sites_settings_holds_for_all_runs_together_where_it_is_lower(ledger, ceiling, steps_left):
    ledger.charge(CHARGE)
    held = reopened(ledger, ceiling=ceiling)
    held.check(Charge(0.1, 1.0, steps_left))
    with pytest.raises(BudgetRefused, match=f"ceiling epsilon={min(0.2, ceiling or 1)}"):
        held.charge(Charge(0.1, 1.0, steps_left + 1))


def test_line_without_an_end_is_told_before_anything_is_written(ledger):
    ledger.charge(CHARGE)
    assert ledger.read().warnings == ()
    ledger.path.write_bytes(ledger.path.read_bytes()[:-5])
    history = ledger.read()
    assert history.charges == ()
    (warning,) = history.warnings
    assert warning.startswith("line 2: ")
    assert "not counted" in warning


def test_folder_in_the_ledgers_place_is_named(tmp_path):
    with pytest.raises(LedgerFault, match="cannot be read"):
        Ledger(tmp_path, "mercy").read()


def test_check_alone_spends_nothing(ledger):
    ledger.check(CHARGE)
    assert ledger.read().charges == ()


def test_ceiling_can_be_changed_by_the_site_and_the_change_is_written_down(ledger):
    ledger.charge(Charge(0.1, 1.0, 20))
    with pytest.raises(BudgetRefused):
        ledger.charge(CHARGE)
    ledger.set_ceiling(0.3)
    ledger.charge(CHARGE)
    assert [entry["kind"] for entry in ledger.read().entries] == ["opened", "charge", "ceiling", "charge"]
    assert ledger.read().epsilon == 0.3
    for nothing in (0.0, float("nan"), float("inf"), -1.0):
        with pytest.raises(LedgerFault, match="a ceiling wants"):
            ledger.set_ceiling(nothing)


@pytest.mark.parametrize("values", [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.1, 0.0, 1), (0.1, float("nan"), 1), (0.1, 1.0, 0)])
def test_charge_that_means_nothing_is_refused(values):
    with pytest.raises(ValueError, match="a charge wants"):
        Charge(*values)


def test_every_changed_byte_is_noticed_or_harmless(ledger):
    """One byte flipped anywhere: the charges are read as they were, or the ledger is refused; never fewer charges."""
    ledger.charge(CHARGE, round=1)
    ledger.charge(CHARGE, round=2)
    content = ledger.path.read_bytes()
    for position in range(len(content)):
        for mask in (0x01, 0x20):
            changed = content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]
            with suppress(LedgerFault):
                assert read_history(changed).charges == (CHARGE, CHARGE)


@pytest.mark.parametrize("damage", [lambda lines: lines[:1] + lines[2:], lambda lines: [lines[0], *lines[:0:-1]]])
def test_line_taken_out_or_moved_is_noticed(ledger, damage):
    for round in (1, 2, 3):
        ledger.charge(CHARGE, round=round)
    ledger.path.write_bytes(b"".join(damage(ledger.path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(LedgerFault, match="line 2: it does not follow the line before"):
        ledger.read()


def test_line_cut_off_anywhere_by_a_crash_is_dropped_and_the_repair_written_down(ledger):
    ledger.charge(CHARGE, round=1)
    sound = ledger.path.read_bytes()
    ledger.charge(CHARGE, round=2)
    whole = ledger.path.read_bytes()
    for size in range(len(sound) + 1, len(whole) - 1):
        ledger.path.write_bytes(whole[:size])
        assert ledger.read().charges == (CHARGE,)
    ledger.charge(CHARGE, round=2)
    history = ledger.read()
    assert history.charges == (CHARGE, CHARGE)
    assert [entry["kind"] for entry in history.entries] == ["opened", "charge", "repaired", "charge"]
    assert "bytes of a line that a crash cut off" in history.warnings[0]


def test_charge_that_lacks_only_the_end_of_its_line_still_counts(ledger):
    ledger.charge(CHARGE, round=1)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-1])
    assert ledger.read().charges == (CHARGE,)
    ledger.charge(CHARGE, round=2)
    assert ledger.read().charges == (CHARGE, CHARGE)


def test_two_charges_run_together_by_damage_are_not_taken_for_a_crash(ledger):
    ledger.charge(CHARGE, round=1)
    ledger.charge(CHARGE, round=2)
    *head, first, second = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(head) + first[:-1] + second[:-1])
    with pytest.raises(LedgerFault, match="line 2: no line of a ledger"):
        ledger.read()


def test_another_sites_ledger_is_refused(ledger):
    with pytest.raises(LedgerFault, match="the ledger of site 'mercy' and this is 'hope'"):
        reopened(ledger, site="hope").charge(CHARGE)


def test_missing_or_empty_ledger_is_never_made_anew(ledger, tmp_path):
    with pytest.raises(LedgerFault, match="does not exist; make it with `dsm-site ledger create`"):
        Ledger(tmp_path / "none.jsonl", "mercy", Steps()).charge(CHARGE)
    ledger.path.write_bytes(b"")
    with pytest.raises(LedgerFault, match="it is empty"):
        ledger.charge(CHARGE)
    with pytest.raises(LedgerFault, match="a site keeps one ledger"):
        ledger.create(epsilon=8.0, delta=1e-4)


def test_line_of_a_kind_unknown_here_is_not_read_over(ledger):
    history = ledger.read()
    line = seal({"index": 1, "previous": history.head, "time": "2030", "kind": "gift", "steps": -5})
    ledger.path.write_bytes(ledger.path.read_bytes() + line)
    with pytest.raises(LedgerFault, match="a line of kind 'gift'"):
        ledger.read()


def test_clock_set_back_is_written_down_and_gives_nothing_back(ledger):
    times = iter([2e9, 1e9])
    late = reopened(ledger, clock=lambda: next(times))
    late.charge(CHARGE)
    late.charge(CHARGE)
    history = ledger.read()
    assert history.charges == (CHARGE, CHARGE)
    assert history.warnings == ("line 3: the clock was set back, from 2033-05-18T03:33:20.000+00:00",)


def test_second_process_waits_no_longer_than_its_deadline(ledger):
    with open(ledger.path) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for ask in (ledger.read, lambda: ledger.charge(CHARGE)):
            with pytest.raises(LedgerFault, match=r"locked by another process for 0\.2 s"):
                ask()
    ledger.charge(CHARGE)


def test_processes_that_charge_at_once_lose_no_charge(ledger):
    ledger.set_ceiling(1.0)

    def charge_often():
        for _ in range(5):
            reopened(ledger, lock_timeout_s=60.0).charge(CHARGE)

    workers = [threading.Thread(target=charge_often) for _ in range(3)]
    workers += [multiprocessing.get_context("fork").Process(target=charge_often)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(ledger.read().charges) == 20


def test_full_disk_refuses_the_charge_and_leaves_the_ledger_sound(ledger, monkeypatch):
    before = ledger.path.read_bytes()
    monkeypatch.setattr(os, "pwrite", lambda file, line, at, write=os.pwrite: write(file, line[:20], at))
    with pytest.raises(LedgerFault, match="took no new line"):
        ledger.charge(CHARGE)
    assert ledger.path.read_bytes() == before


def test_ledger_names_no_patient_and_no_path(ledger):
    ledger.charge(CHARGE, round=1)
    assert {key for line in ledger.path.read_text().splitlines() for key in json.loads(line)} == {
        *("index", "previous", "time", "kind", "hash", "site", "epsilon", "delta"),
        *("sampling_rate", "noise_multiplier", "steps", "note"),
    }
