"""A site whose disk is full: nothing leaves it, the server learns why, and once there is room it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import suppress

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity

from client import app as porter
from client.ledger import Charge, Ledger, LedgerFault
from client.trail import records_what_leaves
from strategies import messages
from strategies.audit import AuditLog


class Anything:
    def is_within(self, charges, delta, epsilon):
        return True


@pytest.fixture
def disk(tmp_path):
    """A disk of half a megabyte, with a function that fills it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", f"{tmp_path}"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may mount no disk of its own, so none can be filled")

    def fill():
        with suppress(OSError), (tmp_path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    yield tmp_path, fill
    subprocess.run(["umount", "--lazy", f"{tmp_path}"], check=True)


@pytest.fixture
def ask(monkeypatch):
    """A site's answer to an order, by a handler that has an update to send."""
    for name, value in (("_task_id", 1), ("_run_id", 1), ("_node_id", SUPERLINK_NODE_ID)):
        monkeypatch.setattr(TaskIdentity, name, value)

    def send(handler, audit):
        message = Message(RecordDict({"order": ConfigRecord()}), 2, messages.TEXT)
        message.metadata.__dict__["_message_id"] = "question"
        return records_what_leaves(handler)(message, Context(1, 2, {"audit": f"{audit}"}, RecordDict(), {}))

    return send


def receipt(message, context):
    return Message(messages.pack_text_receipt("a" * 64), reply_to=message)


def test_what_cannot_be_recorded_does_not_leave_and_the_server_learns_why(disk, ask):
    folder, fill = disk
    audit = folder / "audit.jsonl"
    assert ask(receipt, audit).has_content()
    fill()
    for _ in range(3):
        reply = ask(receipt, audit)
        assert reply.error.code == messages.FAULT_CODE
        assert "audit log cannot be written (No space left on device), so nothing leaves" in reply.error.reason
        assert f"{folder}" not in reply.error.reason
    (folder / "filler").unlink()
    assert ask(receipt, audit).has_content()
    assert AuditLog(audit).verify().is_intact


def test_a_charge_that_the_disk_does_not_take_is_no_charge_and_the_ledger_stays_sound(disk):
    folder, fill = disk
    ledger = Ledger(folder / "ledger.jsonl", "mercy", Anything())
    ledger.create(8.0, 1e-4)
    ledger.charge(Charge(0.1, 1.0, 1))
    fill()

    def charge_often():
        for _ in range(50):
            ledger.charge(Charge(0.1, 1.0, 1))

    with pytest.raises(LedgerFault, match=r"took no new line \(No space left on device\), so nothing leaves; free its"):
        charge_often()
    taken = len(ledger.read().charges)
    (folder / "filler").unlink()
    ledger.charge(Charge(0.1, 1.0, 1))
    assert len(ledger.read().charges) == taken + 1


def test_a_full_disk_anywhere_else_at_the_site_is_named_and_no_file_is(ask, monkeypatch):
    def full(context):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/doe/ct.nii.gz")

    monkeypatch.setattr(porter, "site_settings", full)
    message = Message(messages.pack_enrol(), 2, messages.ENROL)
    message.metadata.__dict__["_message_id"] = "question"
    reply = porter.app(message, Context(1, 2, {}, RecordDict(), {}))
    assert reply.error.reason == "OSError (No space left on device) at the site; its own log has the details"
