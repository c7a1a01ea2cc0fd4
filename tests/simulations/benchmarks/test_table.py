"""Benchmarks: the table that is printed, the file that is written, and checks that NaN cannot pass."""

import json
import math

import pytest

from dsm_core.config import Config, config_hash
from simulations.benchmarks.table import Check, format_table, write_benchmark


def test_columns_are_every_key_and_numbers_stand_right():
    rows = [{"scan": "native", "ms": 1.5}, {"scan": "torch", "ms": 12.25, "note": "slow"}, {"scan": "cuda", "ms": None}]
    assert format_table(rows).splitlines() == [
        "scan       ms  note",
        "native    1.5  -",
        "torch   12.25  slow",
        "cuda        -  -",
    ]


def test_no_rows_are_said_so():
    assert format_table([]) == "(no rows)\n"


@pytest.mark.parametrize(
    ("check", "ok", "want"),
    [
        (Check.at_most("difference", 1e-6, 1e-6), True, "<= 1e-06"),
        (Check.at_most("difference", 2e-6, 1e-6), False, "<= 1e-06"),
        (Check.at_most("difference", math.nan, 1e-6), False, "<= 1e-06"),
        (Check.at_least("dice", 0.8, 0.8), True, ">= 0.8"),
        (Check.at_least("dice", math.nan, 0.8), False, ">= 0.8"),
        (Check.equal("status", "finished:failed", "finished:completed"), False, "finished:completed"),
        (Check.equal("rounds", 3, 3), True, "3"),
    ],
)
def test_checks(check, ok, want):
    assert (check.ok, check.want) == (ok, want)


def test_file_carries_provenance_and_only_finite_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = Config(seed=7, out="runs")
    path = write_benchmark(
        "speed",
        [{"scan": "native", "ms": 1.5, "ratio": math.nan}, {"scan": "torch", "ms": math.inf}],
        [Check.at_most("ms", 1.5, 2.0), Check.at_most("ratio", math.nan, 1.0)],
        command=["python", "-m", "simulations.benchmarks.speed", f"sites_dir={tmp_path}/data"],
        config=config,
        text_encoder="hashed words",
        seconds={"native": 0.5},
    )
    assert path.as_posix() == "runs/benchmarks/speed.json"
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert str(tmp_path) not in text
    found = json.loads(text)
    assert found["command"] == "python -m simulations.benchmarks.speed sites_dir=data"
    assert (found["seed"], found["config_hash"]) == (7, config_hash(config))
    assert found["text_encoder"] == "hashed words"
    assert found["seconds"] == {"native": 0.5}
    assert found["rows"] == [{"scan": "native", "ms": 1.5, "ratio": None}, {"scan": "torch", "ms": None}]
    assert [check["ok"] for check in found["checks"]] == [True, False]
    assert found["checks"][1] == {"name": "ratio", "value": None, "want": "<= 1", "ok": False}
    shown = capsys.readouterr().out
    assert "native" in shown
    assert shown.splitlines()[-2].endswith("NO")
