"""A wait is never silent: a line says for whom, and the file shows it."""

import json

import pytest

from server import waiting as module
from server.waiting import Waiting, mark_finished, mark_stopped, read_progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_line_names_who_is_awaited_now_and_how_long(clock):
    said = []
    waiting = Waiting(say=said.append)
    waiting.begin("training", 7, 100, ["site_c", "site_a", "site_b"], 600)
    waiting.tick()
    assert said == []
    clock[0] += 12
    waiting.answered("site_a")
    clock[0] += 29
    waiting.tick()
    assert said == ["round 7: waiting for site_b, site_c (41 s of 600 s)"]
    waiting.tick()
    assert len(said) == 1
    clock[0] += 30
    waiting.tick()
    assert said[1] == "round 7: waiting for site_b, site_c (71 s of 600 s)"
    assert waiting.seconds() == {"site_a": 12.0}


def test_file_follows_the_round(tmp_path, clock):
    waiting = Waiting(tmp_path, "organs")
    waiting.begin("training", 2, 5, ["a", "b"], 60)
    clock[0] += 3
    waiting.answered("b", "disk full")
    found = read_progress(tmp_path)
    assert (found["method"], found["phase"], found["round"], found["rounds"]) == ("organs", "training", 2, 5)
    assert found["waiting_for"] == ["a"]
    assert found["answered"] == {"b": {"seconds": 3.0, "reason": "disk full"}}
    waiting.end("stopped", "round 2: 0 of 2 sites")
    assert read_progress(tmp_path)["reason"] == "round 2: 0 of 2 sites"
    mark_finished(tmp_path)
    assert read_progress(tmp_path)["phase"] == "finished"


def test_sign_of_life_goes_on_while_nobody_answers(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: clock[0])
    waiting = Waiting(tmp_path)
    waiting.begin("training", 1, 2, ["a"], 60)
    clock[0] += module.SIGN_EVERY_S
    waiting.tick()
    assert read_progress(tmp_path)["alive"] == clock[0]
    assert read_progress(tmp_path)["since"] == 100.0


def test_what_cannot_be_written_or_read_stops_nothing(tmp_path):
    waiting = Waiting(tmp_path / "gone")
    waiting.begin("training", 1, 2, ["a"], 60)
    assert read_progress(tmp_path) == {}
    (tmp_path / "progress.json").write_text('{"phase": "tr')
    assert read_progress(tmp_path) == {}
    (tmp_path / "progress.json").write_text(json.dumps([1]))
    assert read_progress(tmp_path) == {}


def test_run_whose_process_is_gone_is_marked_with_what_it_said_itself_if_anything(tmp_path):
    assert mark_stopped(tmp_path, "killed") == "killed"
    assert read_progress(tmp_path) == {}
    waiting = Waiting(tmp_path)
    waiting.begin("training", 2, 5, ["a"], 60)
    assert mark_stopped(tmp_path, "killed") == "killed"
    assert (read_progress(tmp_path)["phase"], read_progress(tmp_path)["reason"]) == ("stopped", "killed")
    waiting.end("stopped", "below quorum")
    assert mark_stopped(tmp_path, "killed") == "below quorum"
    mark_finished(tmp_path)
    mark_stopped(tmp_path, "killed")
    assert read_progress(tmp_path)["phase"] == "finished"
