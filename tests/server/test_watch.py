"""What `dsm-server watch` shows of a run folder, and when it ends."""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from server.run_table import headline, run_table, site_rows
from server.waiting import Waiting
from server.watch import Log, Screen, add_commands

RECORDS = [
    {
        "method": "federated", "round": 1, "rounds": 3, "sites": ["a", "b"], "refused": {}, "failed": {}, "loss": 1.5,
        "seconds": 9.0, "answer_seconds": {"a": 2.0, "b": 8.0},
    },
    {
        "method": "federated", "round": 2, "rounds": 3, "sites": ["a"], "refused": {"c": "NaN in encoder"},
        "failed": {"b": "no answer within 60 s"}, "loss": 1.25, "seconds": 60.0, "answer_seconds": {"a": 3.0, "c": 4.0},
        "late": [{"site": "b", "round": 1, "late_s": 4.0}],
    },
]  # fmt: skip
PROGRESS = {
    "method": "federated", "phase": "training", "round": 3, "rounds": 3, "since": 1000.0, "deadline_s": 60.0,
    "waiting_for": ["b"], "answered": {"a": {"seconds": 2.5, "reason": ""}}, "reason": "", "alive": 1010.0,
}  # fmt: skip


def watch(*words):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args(["watch", *map(str, words)])
    return options.run(options)


def write_history(folder, records=RECORDS, torn=""):
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + torn)


def test_a_row_counts_what_a_site_did_and_says_what_it_does():
    rows = site_rows(PROGRESS, RECORDS)
    assert (rows["a"].answered, rows["a"].seconds, rows["a"].now) == (2, 2.5, "has answered")
    assert (rows["b"].answered, rows["b"].late, rows["b"].failed, rows["b"].now) == (1, 1, 1, "awaited")
    assert (rows["c"].refused, rows["c"].now) == (1, "refused in round 2: NaN in encoder")


def test_simulations_list_of_refusals_is_read_too():
    both = [{"site": "c", "reason": "NaN in encoder"}, {"site": "b", "reason": "no answer within 60 s"}]
    assert site_rows(PROGRESS, [RECORDS[0], RECORDS[1] | {"refused": both}]) == site_rows(PROGRESS, RECORDS)


def test_headline_says_how_long_it_waits_and_when_nobody_seems_alive():
    assert headline(PROGRESS, RECORDS, 1041.0) == "federated: round 3 of 3, training (41 s of 60 s), loss 1.250"
    silent = "no sign of life for 90 s: if its process is gone, go on with `dsm-server start --resume`"
    assert silent in headline(PROGRESS, RECORDS, 1100.0)
    staged = headline(PROGRESS | {"stage": "prior"}, RECORDS, 1041.0)
    assert staged == "federated: round 3 of 3 (prior), training (41 s of 60 s), loss 1.250"
    stopped = PROGRESS | {"phase": "stopped", "reason": "round 3: 0 of 3 sites"}
    assert headline(stopped, RECORDS, 9999.0) == "federated: round 3 of 3, stopped, loss 1.250, round 3: 0 of 3 sites"


def test_rounds_of_another_method_are_left_out():
    other = [record | {"method": "organs", "sites": ["z"]} for record in RECORDS]
    lines = run_table(PROGRESS, other + RECORDS, 1041.0)
    assert [line.split()[0] for line in lines] == ["federated:", "site", "a", "b", "c"]


def test_once_prints_the_table_and_ends(tmp_path, capsys):
    (tmp_path / "progress.json").write_text(json.dumps(PROGRESS))
    write_history(tmp_path, torn='{"method": "federated", "round": 3')
    assert watch(tmp_path, "--once") == 0
    printed = capsys.readouterr().out
    assert "b     1         1     0        1       8.0      awaited" in printed


def test_folder_without_a_run_is_named(tmp_path, capsys):
    assert watch(tmp_path) == watch(tmp_path, "--once") == 2
    assert "holds no progress.json" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "code"), [("finished", 0), ("stopped", 1)])
def test_every_change_is_a_line_until_the_run_ends(tmp_path, capsys, monkeypatch, end, code):
    monkeypatch.setattr("server.watch.POLL_S", 0.02)
    waiting = Waiting(tmp_path)
    waiting.begin("training", 1, 3, ["a", "b"], 60)

    def run():
        time.sleep(0.2)
        waiting.answered("a")
        time.sleep(0.2)
        write_history(tmp_path)
        waiting.end(end, "disk full" if end == "stopped" else "")

    thread = threading.Thread(target=run)
    thread.start()
    assert watch(tmp_path) == code
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "federated: round 1: training, waiting for a, b"
    assert (
        "federated: round 2 done in 60.0 s: loss 1.250, 1 sites; b: no answer within 60 s; c: NaN in encoder" in lines
    )
    assert lines[-1] == "federated: stopped: disk full" if end == "stopped" else "federated: finished"
    assert len(lines) == len(set(lines))


def test_a_long_wait_is_told_again_and_names_who_is_left(capsys, monkeypatch):
    clock = [500.0]
    monkeypatch.setattr("server.watch.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("server.watch.time.time", lambda: 1000.0 + clock[0] - 500.0)
    log = Log()
    for _ in range(4):
        log.show(PROGRESS | {"alive": 1000.0 + clock[0] - 500.0}, RECORDS)
        clock[0] += 15
    told = [line for line in capsys.readouterr().out.splitlines() if "of 60 s" in line]
    assert told == ["federated: round 3: waiting for b (30 s of 60 s)"]


def test_a_run_whose_process_is_gone_says_so_once(capsys, monkeypatch):
    log = Log()
    for now in (1040.0, 1071.0, 1100.0):
        monkeypatch.setattr("server.watch.time.time", lambda now=now: now)
        log.show(PROGRESS, RECORDS)
    told = [line for line in capsys.readouterr().out.splitlines() if "sign of life" in line]
    assert len(told) == 1
    assert told[0].startswith("federated: round 3: no sign of life for 61 s: if its process is gone, go on with")


@pytest.mark.parametrize("phase", ["enrolling", "connecting"])
def test_a_wait_before_training_has_its_rows_too(phase):
    rows = site_rows(PROGRESS | {"phase": phase}, [])
    assert {site: row.now for site, row in rows.items()} == {"a": "has answered", "b": "awaited"}


def test_terminal_is_drawn_in_place(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("server.watch.POLL_S", 0.02)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("server.watch.shutil.get_terminal_size", lambda: os.terminal_size((300, 24)))
    (tmp_path / "progress.json").write_text(json.dumps(PROGRESS))
    write_history(tmp_path)
    ends = threading.Timer(0.2, lambda: Waiting(tmp_path).end("finished"))
    ends.start()
    assert watch(tmp_path) == 0
    assert "\x1b[5F\x1b[J" in capsys.readouterr().out


def test_narrow_terminal_hides_nothing(capsys, monkeypatch):
    monkeypatch.setattr("server.watch.shutil.get_terminal_size", lambda: os.terminal_size((40, 24)))
    monkeypatch.setattr("server.watch.time.time", lambda: 1100.0)
    screen = Screen()
    screen.show(PROGRESS, RECORDS)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) < 40 for line in lines)
    assert "resume=RUN_DIR" in " ".join(line.strip() for line in lines)
    screen.show(PROGRESS, RECORDS)
    assert f"\x1b[{len(lines)}F" in capsys.readouterr().out


def test_watching_does_not_load_the_model():
    program = "import server.watch, sys; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=300)
    assert said.stdout.strip() == "False"
