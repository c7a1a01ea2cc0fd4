"""A sweep does what is missing, once; names what fails; and never works beside another in one folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from dsm_core.config_words import compose_config
from simulations.sweep import run as sweep
from simulations.sweep import runs
from simulations.sweep.plan import SweepError, plan_sweep
from simulations.sweep.runs import only_one, path_word, time_left_s

WORDS = ("privacy.epsilon=1,8,inf", "name=mine")


@pytest.fixture
def simulated(monkeypatch, tmp_path):
    """A stand-in for dsm-simulate in its own process; asked to fail by `fail`, a part of a run's name."""
    asked: list[list[str]] = []
    program = tmp_path / "simulate.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "words = dict(w.split('=', 1) for w in sys.argv[1:])\n"
        "if 'resume' in words: run = pathlib.Path(words['resume'])\n"
        "else: run = pathlib.Path(words['out'], words['name'])\n"
        "run.mkdir(parents=True, exist_ok=True)\n"
        f"fail = pathlib.Path({str(tmp_path)!r}, 'fail')\n"
        "if fail.exists() and fail.read_text() in run.name:\n"
        "    sys.exit(print('dsm-simulate: the run failed: site_a refused: budget', file=sys.stderr) or 1)\n"
        "(run / 'run.json').write_text(json.dumps({'finished': True, 'seconds': {'all': 60}}))\n"
        "row = {'method': 'federated', 'site': 'a', 'class': 'liver', 'status': 'local', 'dice': .5, 'nsd': None}\n"
        "(run / 'matrix.json').write_text(json.dumps([row]))\n"
        "(run / 'report.html').write_text('done')\n"
    )
    popen = subprocess.Popen

    def instead(command, **options):
        if "simulations.run" not in command:
            return popen(command, **options)
        asked.append(command[3:])
        return popen([sys.executable, str(program), *command[3:]], **options)

    monkeypatch.setattr(runs.subprocess, "Popen", instead)
    monkeypatch.setattr(runs, "_POLL_S", 0.01)
    return asked


def names(asked):
    return [word.partition("=")[2] for words in asked for word in words if word.startswith("name=")]


def test_finished_runs_are_not_repeated_and_further_ones_are_added(simulated, tmp_path):
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 0
    assert names(simulated) == ["epsilon_1", "epsilon_8", "epsilon_inf"]
    assert sweep.main(["privacy.epsilon=1,4,inf", "name=mine", f"out={tmp_path}"]) == 0
    assert names(simulated)[3:] == ["epsilon_4"]
    table = json.loads((tmp_path / "sweeps/mine/table.json").read_text())
    assert {run["status"] for run in table["runs"]} == {"done"}


def test_run_that_fails_is_named_the_rest_goes_on_and_it_is_tried_again(simulated, tmp_path, capsys):
    (tmp_path / "fail").write_text("epsilon_8")
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 1
    assert names(simulated) == ["epsilon_1", "epsilon_8", "epsilon_inf"]
    assert "FAILED epsilon_8: the run failed: site_a refused: budget" in capsys.readouterr().out
    assert "site_a refused: budget" in (tmp_path / "sweeps/mine/report.html").read_text()
    (tmp_path / "fail").unlink()
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 0
    assert names(simulated)[3:] == ["epsilon_8"]


def test_stopped_open_run_goes_on_and_a_stopped_private_one_begins_anew(simulated, tmp_path):
    for name in ("epsilon_8", "epsilon_inf"):
        state = tmp_path / "sweeps/mine/runs" / name / "state"
        state.mkdir(parents=True)
        (state / "config.json").write_text("{}")
        (state.parent / "ledgers").mkdir()
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 0
    by_name = {words[0]: words for words in simulated if words[0].startswith("resume=")}
    assert list(by_name) == [f"resume={tmp_path}/sweeps/mine/runs/epsilon_inf"]
    assert not (tmp_path / "sweeps/mine/runs/epsilon_8/ledgers").exists()


def test_public_start_is_trained_once_and_every_run_starts_from_it(simulated, tmp_path):
    words = ["privacy.epsilon=0,1,inf", "public.seed=9", "name=mine", f"out={tmp_path}"]
    assert sweep.main(words) == sweep.main(words) == 0
    assert names(simulated) == ["public", "epsilon_0", "epsilon_1", "epsilon_inf"]
    start = f"start={tmp_path}/sweeps/mine/runs/public/checkpoints/last"
    assert all((start in words) == (name != "public") for words, name in zip(simulated, names(simulated), strict=True))


def test_nothing_is_swept_from_a_public_start_that_failed(simulated, tmp_path, capsys):
    (tmp_path / "fail").write_text("public")
    assert sweep.main(["privacy.epsilon=1", "public.seed=9", "name=mine", f"out={tmp_path}"]) == 1
    assert names(simulated) == ["public"]
    assert "no run can start from it" in capsys.readouterr().err


def test_folder_of_another_sweep_and_one_in_use_are_refused(simulated, tmp_path, capsys, folder):
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 0
    assert sweep.main([*WORDS, "rounds=3", f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "there fewer; asked for rounds=3; choose another name=" in said
    assert sweep.main([*WORDS, "rounds=3", f"out={tmp_path}", "dry_run=true"]) == 2
    capsys.readouterr()
    with only_one(folder), pytest.raises(SweepError, match="is in use"), only_one(folder):
        pass
    with only_one(folder) as lock:
        held = os.dup(lock)
    with pytest.raises(SweepError, match="is in use"), only_one(folder):
        pass
    os.close(held)
    with only_one(folder):
        pass


@pytest.mark.parametrize("damaged", ["audit.json", "sweep.json"])
def test_damaged_file_of_a_sweep_is_named_and_nothing_is_run(simulated, tmp_path, capsys, damaged):
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 0
    (tmp_path / "sweeps/mine" / damaged).write_text("{}")
    assert sweep.main([*WORDS, "privacy.epsilon=2", f"out={tmp_path}"]) == 2
    assert f"{damaged} cannot be read" in capsys.readouterr().err
    assert len(simulated) == 3


def test_damaged_ledger_of_a_run_makes_it_a_failed_one(simulated, tmp_path, capsys):
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 0
    ledgers = tmp_path / "sweeps/mine/runs/epsilon_8/ledgers/federated"
    ledgers.mkdir(parents=True)
    (ledgers / "mercy.jsonl").write_text("nonsense")
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 1
    assert "FAILED epsilon_8: a site's ledger of this run: " in capsys.readouterr().out


def test_stopped_by_hand_it_says_how_to_go_on(simulated, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "do_run", stop)
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 130
    assert "the same command again goes on" in capsys.readouterr().err


def test_full_disk_is_told_with_its_remedy(simulated, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sweep, "write_table", full)
    assert sweep.main([*WORDS, f"out={tmp_path}"]) == 1
    assert "No space left on device; make room on the disk of" in capsys.readouterr().err


def test_dry_run_lists_the_runs_and_writes_nothing(simulated, tmp_path, capsys):
    assert sweep.main(["quick", f"out={tmp_path / 'runs'}", "dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("public start", "epsilon_8", "epsilon_inf", "nothing written"))
    assert not (tmp_path / "runs").exists()
    assert simulated == []


def test_bad_words_end_with_two_and_help_with_zero(capsys):
    assert sweep.main(["privacy.epsilon=zero"]) == 2
    assert "wants numbers" in capsys.readouterr().err
    assert sweep.main([]) == sweep.main(["--help"]) == 0


def test_time_left_judges_a_run_by_finished_ones_of_its_kind():
    points = plan_sweep(["privacy.epsilon=1,8,inf", "seed=0,1"]).points
    assert time_left_s(points, {}) is None
    done = {"epsilon_1-seed_0": {"seconds": {"a": 100, "b": 20}}, "epsilon_inf-seed_0": {"seconds": {"a": 10}}}
    assert time_left_s(points, done) == 3 * 120 + 10
    assert time_left_s(points, {"epsilon_inf-seed_0": {"seconds": {"a": 10}}}) == 5 * 10


@pytest.mark.parametrize("folder", ["/runs/plain-1.2", "/runs/with space", "/runs/epsilon=8", "/runs/it's (1), mine"])
def test_paths_are_words_that_hydra_reads(folder):
    assert compose_config([path_word("out", folder)]).out == folder
