"""`audit verify` at site and coordinator: exit code and words."""

import argparse
import json

import pytest

import client.audit_commands
import server.audit_commands
from strategies.audit import AuditLog


@pytest.fixture(params=[client.audit_commands, server.audit_commands])
def verify(request, monkeypatch, tmp_path):
    """The command, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    request.param.add_commands(parser.add_subparsers())

    def run(*words):
        options = parser.parse_args(["audit", "verify", *map(str, words)])
        return options.run(options)

    return run


def test_intact_log_ends_with_0_and_tells_its_end(verify, tmp_path, capsys):
    log = AuditLog(tmp_path / "audit.jsonl")
    head = log.record("left", round=1)
    assert verify(log.path) == 0
    assert f"intact\n  ends with {head}" in capsys.readouterr().out
    assert verify(log.path, "--expect", head, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"is_intact": True, "head": f"{head}", "faults": [], "notes": []}


def test_changed_log_ends_with_1_and_names_every_fault(verify, tmp_path, capsys):
    log = AuditLog(tmp_path / "audit.jsonl")
    for round in (1, 2, 3):
        log.record("left", round=round)
    log.path.write_bytes(log.path.read_bytes().replace(b'"round":1', b'"round":9'))
    assert verify(log.path) == 1
    assert "CHANGED, 1 fault(s)\n  fault: line 1 is no record, or was edited" in capsys.readouterr().out


def test_absent_log_or_impossible_end_ends_with_2(verify, tmp_path, capsys):
    assert verify() == 2
    assert "there is no audit log at" in capsys.readouterr().err
    assert verify(tmp_path / "x", "--expect", "5") == 2
    assert "NUMBER:HASH" in capsys.readouterr().err
