"""`dsm-site ledger`: what was spent on one page, every fault named, and exit codes that a script can use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from client.cli import main
from client.ledger import LEDGER_NAME, Charge, Ledger
from client.privacy import PatientAccountant


@pytest.fixture
def folder(tmp_path):
    site = tmp_path / "mercy"
    for part in ("imagesTr", "labelsTr"):
        (site / part).mkdir(parents=True)
        for number in range(10):
            nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)), site / part / f"p{number}.nii")
    (site / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}})
    )
    return site


@pytest.fixture
def spent(folder, capsys):
    """A ledger with a ceiling of 8 and ten charges."""
    assert main(["ledger", "create", str(folder), "--epsilon", "8"]) == 0
    assert "ceiling epsilon=8 at delta=0.01 for 10 patients" in capsys.readouterr().out
    ledger = Ledger(folder / LEDGER_NAME, "mercy", PatientAccountant("rdp"))
    for round in range(1, 11):
        ledger.charge(Charge(0.2, 2.0, 5), round=round)
    return ledger


@pytest.mark.parametrize("delta", ["0.1", "0.5"])
def test_ledger_whose_delta_promises_nothing_is_not_made(folder, capsys, delta):
    assert main(["ledger", "create", str(folder), "--epsilon", "8", "--delta", delta]) != 0
    assert "for 10 patients: to reveal one of them whole would keep that promise" in capsys.readouterr().err
    assert not (folder / LEDGER_NAME).exists()


def test_show_tells_what_was_spent_and_for_what(folder, spent, capsys):
    assert main(["ledger", "show", str(folder)]) == 0
    text = capsys.readouterr().out
    epsilon = PatientAccountant().epsilon(spent.read().charges, 0.01)
    assert f"every patient has spent epsilon {epsilon:.3f} of 8 (delta 0.01) in 50 steps of 10 charges" in text
    assert text.count("round ") == 10
    assert main(["ledger", "show", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["spent"] == pytest.approx(epsilon)
    assert report["charges"][3]["note"] == {"round": 4}


def test_verify_finds_damage_and_an_older_copy(folder, spent, capsys):
    head = spent.read().head
    older = spent.path.read_bytes()
    assert main(["ledger", "verify", str(folder), "--head", head]) == 0
    spent.charge(Charge(0.2, 2.0, 5))
    newer = spent.read().head
    assert main(["ledger", "verify", str(folder), "--head", head]) == 0
    spent.path.write_bytes(older)
    capsys.readouterr()
    assert main(["ledger", "verify", str(folder)]) == 0
    assert main(["ledger", "verify", str(folder), "--head", newer]) == 1
    assert "an older copy was put back" in capsys.readouterr().err
    spent.path.write_bytes(older.replace(b'"steps":5', b'"steps":4', 1))
    assert main(["ledger", "verify", str(folder), "--json"]) == 1
    assert "its hash is not that of its content" in json.loads(capsys.readouterr().err)["fault"]


def test_ceiling_is_changed_here_and_nowhere_else(folder, spent, capsys):
    assert main(["ledger", "ceiling", str(folder), "--epsilon", "9"]) == 0
    assert "ceiling epsilon=9, before 8" in capsys.readouterr().out
    assert spent.read().epsilon == 9.0
    assert main(["ledger", "ceiling", str(folder), "--epsilon", "-1"]) == 1


def test_second_ledger_and_missing_one_are_named(folder, spent, capsys):
    assert main(["ledger", "create", str(folder), "--epsilon", "80"]) == 1
    assert "a site keeps one ledger" in capsys.readouterr().err
    assert main(["ledger", "show", str(folder), "--file", str(folder / "other.jsonl")]) == 1
    assert "make it with `dsm-site ledger create`" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word(folder, spent):
    command = [sys.executable, "-m", "client.cli", "ledger", "show", str(folder)]
    show = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert show.stdout is not None
    assert show.stderr is not None
    show.stdout.close()  # before the command has anything to say
    assert show.wait(120) == 128 + signal.SIGPIPE
    assert show.stderr.read() == ""
