"""The audit log: every tampering is found, a crash is told apart from it, what cannot be recorded is refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from filelock import FileLock

from strategies.audit import AuditError, AuditLog, Head
from strategies.audit_records import write_record


@pytest.fixture
def log(tmp_path):
    """A log of five records."""
    log = AuditLog(tmp_path / "audit.jsonl", timeout_s=0.2)
    for number in range(1, 6):
        log.record("left", round=number, bytes=100 * number)
    return log


def lines_of(log):
    return log.path.read_bytes().splitlines(keepends=True)


def rewrite(log, lines):
    log.path.write_bytes(b"".join(lines))


def forged(line, **changes):
    """A record with other content and a hash that is right for it, as one who knows the format would write it."""
    content = {**json.loads(line), **changes}
    del content["hash"]
    return write_record(content)[0] + b"\n"


def head_path(log):
    return log.path.with_name("audit.jsonl.head")


def test_log_says_what_happened_when_and_in_which_order(log):
    verdict = log.verify()
    assert verdict.is_intact
    assert not verdict.notes
    assert verdict.head == log.head() == Head.parse(head_path(log).read_text())
    records = [json.loads(line) for line in lines_of(log)]
    assert [record["facts"]["round"] for record in records] == [1, 2, 3, 4, 5]
    assert all(later["previous"] == earlier["hash"] for earlier, later in pairwise(records))
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


TAMPERINGS = {
    "a fact edited": (
        lambda lines: [lines[0].replace(b":100", b":1"), *lines[1:]],
        "line 1 is no record, or was edited",
    ),
    "a space added": (lambda lines: [lines[0].replace(b":100", b": 100"), *lines[1:]], "line 1 is no record"),
    "edited with a right hash": (
        lambda lines: [*lines[:2], forged(lines[2], facts={"round": 3, "bytes": 0}), *lines[3:]],
        "record 4 does not follow the record before it",
    ),
    "the last edited with a right hash": (
        lambda lines: [*lines[:4], forged(lines[4], facts={})],
        "record 5 is not the one that its head names",
    ),
    "one deleted": (lambda lines: [*lines[:1], *lines[2:]], "line 2 holds record 3 after record 1"),
    "the first deleted": (lambda lines: lines[1:], "line 1 holds record 2 after record 0"),
    "two swapped": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2 holds record 3 after record 1"),
    "one doubled": (lambda lines: [*lines[:2], *lines[1:]], "line 3 holds record 2 after record 2"),
    "the last cut off": (lambda lines: lines[:-1], "its head names record 5 and the log ends with 4"),
    "the last three cut off": (lambda lines: lines[:2], "its head names record 5 and the log ends with 2"),
    "everything cut off": (lambda lines: [], "its head names record 5 and the log ends with 0"),
    "the last line's end cut off": (lambda lines: [*lines[:4], lines[4][:-1]], "the log ends with 4"),
    "two added": (
        lambda lines: [*lines, *(2 * [forged(lines[4], number=6, previous=json.loads(lines[4])["hash"])])],
        "the log holds 7 records, its head states 5",
    ),
    "another log's record put in": (
        lambda lines: [*lines[:2], forged(lines[2], previous="0" * 64), *lines[3:]],
        "record 3 does not follow",
    ),
    "a line of anything": (lambda lines: [*lines[:2], b"{}\n", *lines[3:]], "line 3 is no record"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_each_tampering_is_found(log, tampering):
    change, finding = TAMPERINGS[tampering]
    rewrite(log, change(lines_of(log)))
    verdict = log.verify()
    assert not verdict.is_intact
    assert any(finding in fault for fault in verdict.faults), verdict.faults


def test_a_removed_and_an_older_head_are_found(log):
    older = head_path(log).read_bytes()
    log.record("left", round=6)
    log.record("left", round=7)
    head_path(log).write_bytes(older)
    assert "its head states 5" in log.verify().faults[0]
    head_path(log).unlink()
    assert "head file is missing" in log.verify().faults[0]


def test_log_and_head_made_anew_are_found_by_an_end_noted_elsewhere_only(log, tmp_path):
    noted = log.head()
    log.path.unlink()
    head_path(log).unlink()
    for number in range(1, 6):
        log.record("left", round=number, bytes=0)
    assert log.verify().is_intact  # what the chain alone cannot find
    assert "record 5 is not the one that the end noted elsewhere names" in log.verify(noted).faults[0]
    assert log.verify(log.head()).is_intact


def test_an_end_noted_earlier_still_fits_and_one_beyond_the_log_does_not(log):
    earlier = log.head()
    log.record("left", round=6)
    assert log.verify(earlier).is_intact
    assert "the log ends with 6" in log.verify(Head(9, "0" * 64)).faults[0]


def test_a_torn_line_is_a_crash_that_the_next_record_repairs(log):
    with log.path.open("ab") as file:
        file.write(b'{"event":"le')
    verdict = log.verify()
    assert verdict.is_intact
    assert "12 bytes of a record that a crash cut off" in verdict.notes[0]
    log.record("left", round=6)
    events = [(record := json.loads(line))["event"] for line in lines_of(log)]
    assert events == ["left"] * 5 + ["repaired", "left"]
    assert record["number"] == 7
    assert log.verify().is_intact


def test_a_crash_between_record_and_head_is_told_and_corrected(log, monkeypatch):
    def crash(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("strategies.audit.replace_file", crash)
        with pytest.raises(KeyboardInterrupt):
            log.record("left", round=6)
    verdict = log.verify()
    assert verdict.is_intact
    assert "one record behind" in verdict.notes[0]
    log.record("left", round=7)
    assert log.verify().head.records == 7
    assert not log.verify().notes


def test_a_full_disk_leaves_the_log_as_it_was(log, monkeypatch):
    before = lines_of(log)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("strategies.audit.os.fsync", full)
        with pytest.raises(AuditError, match="cannot be written: No space left"):
            log.record("left", round=6)
    assert lines_of(log) == before
    assert log.record("left", round=6).records == 6
    assert log.verify().is_intact


@pytest.mark.parametrize("tampering", ["the last cut off", "everything cut off", "the last edited with a right hash"])
def test_nothing_is_added_to_a_log_whose_end_was_changed(log, tampering):
    rewrite(log, TAMPERINGS[tampering][0](lines_of(log)))
    with pytest.raises(AuditError, match="is damaged: its last record is not the one"):
        log.record("left", round=6)


def test_several_writers_make_one_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    patience_s = 300.0  # eight who push make a slow disk slower; how long one waits is another test's question
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: AuditLog(path, patience_s).record("left", round=number), range(40)))
    verdict = AuditLog(path).verify()
    assert verdict.is_intact
    assert verdict.head.records == 40


def test_a_writer_that_holds_the_log_is_waited_for_no_longer_than_the_deadline(log):
    with FileLock(f"{log.path}.lock"), pytest.raises(AuditError, match=r"another process held the log for 0\.2 s"):
        log.record("left", round=6)
    with FileLock(f"{log.path}.lock"), pytest.raises(AuditError, match="another process"):
        log.verify()


def test_a_record_longer_than_the_block_that_is_read_is_followed(log):
    log.record("left", names=["x" * 50] * 5000)
    log.record("left", round=7)
    assert log.verify().head.records == 7


def test_no_log_and_no_end_are_named(tmp_path):
    with pytest.raises(AuditError, match="there is no audit log"):
        AuditLog(tmp_path / "audit.jsonl").verify()
    for text in ("", "5", "5:abc", "x:" + "0" * 64, "5:" + "g" * 64):
        with pytest.raises(AuditError, match="NUMBER:HASH"):
            Head.parse(text)
