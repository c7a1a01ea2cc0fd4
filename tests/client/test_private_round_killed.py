"""Kill -9 within a whole private round: what the ledger knows is never below what was sent, and what left is on record.

Each life of the site is a process of its own, forked with everything imported. It answers the server's orders with the
real app, puts each answer on the wire (a file, so that its bytes can be counted) and is killed with SIGKILL before a
line of the project's own code, the line's number drawn at random.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as WireMessage
from flwr.supercore.task_identity import TaskIdentity

import client.app as porter
from client.ledger import Charge, Ledger
from client.privacy import PatientAccountant
from client.trainer import model_arrays
from dsm_core.classes import describe_class
from dsm_core.config import (
    Config,
    DataConfig,
    ModelConfig,
    PriorConfig,
    PrivacyConfig,
    TextConfig,
    TrainConfig,
    TumorsConfig,
)
from dsm_core.model import build_model
from dsm_core.text_building import build_text_space
from strategies import messages
from strategies.audit import AuditLog

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the site's lives are forked")

ROOT = Path(__file__).parents[2]
# Where a kill may come: everything of ours that a private round goes through. Not the model and not the checks of
# records, whose lines would be nearly all of them and lie between the same two steps.
WATCHED = [
    ROOT / path
    for path in (
        "client/app.py", "client/trail.py", "client/training.py", "client/ledger.py", "client/ledger_lines.py",
        "client/permission.py", "client/memory.py", "client/privacy/private_training.py", "strategies/audit.py",
        "dsm_core/durable.py", "tests/client/test_private_round_killed.py",
    )
]  # fmt: skip
SMALL = ModelConfig(
    widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 0, 1), decoder_width=16, query_width=16, mask_width=8,
    prior_widths=(8, 8, 8), lesion_width=8,
)  # fmt: skip
PRIVACY = PrivacyConfig(mode="dp_sgd", epsilon=4.0, accountant="rdp")
DELTA, CEILING = 1e-3, 100.0
ROUNDS = 2
LIVES_OF_A_LEDGER = 5


class Site:
    """A private site of four patients, and what it has put on the wire."""

    def __init__(self, folder):
        self.folder, self.ledger, self.audit = folder, folder / "ledger.jsonl", folder / "audit.jsonl"
        self.data = _patients(folder / "mercy")
        self.text = build_text_space([describe_class("liver")], TextConfig(encoder="offline"))
        self.arrays = model_arrays(build_model(SMALL, self.text))

    def opens_a_ledger(self, number):
        self.ledger = self.folder / f"ledger-{number}.jsonl"
        self.audit = self.folder / f"audit-{number}.jsonl"
        Ledger(self.ledger, "mercy").create(CEILING, DELTA)

    def live(self, dies_at, after_charge=False):
        """Answer a run of `ROUNDS` rounds until a line is reached; the lines in `answer` where it is never reached."""
        told, tells = os.pipe()
        process = os.fork()
        if not process:
            with suppress(BaseException):
                lines = self.answer(dies_at, after_charge)
                os.write(tells, f"{lines}".encode())
            os._exit(0)
        os.close(tells)
        _, status = os.waitpid(process, 0)
        with os.fdopen(told) as report:
            said = report.read()
        assert os.WIFSIGNALED(status) == (said == ""), said
        return json.loads(said) if said else None

    def answer(self, dies_at, after_charge=False):
        """Answer, and die at a line: counted from the start, or from the first charge that is on record.

        Returns:
            Lines gone through: in all, until that charge, until the first sending.
        """
        context = Context(1, 2, {"site-dir": f"{self.data}"}, RecordDict(), {})
        context.node_config |= {"privacy-ledger": f"{self.ledger}", "audit": f"{self.audit}"}
        self._ask(messages.pack_text(self.text.to_bytes(), self.text.hash), messages.TEXT, context)
        config = Config(
            model=SMALL, data=DataConfig(patch=(16, 16, 16)), train=TrainConfig(batch=2), privacy=PRIVACY,
            rounds=ROUNDS, prior=PriorConfig(rounds=0), tumors=TumorsConfig(rounds=0),
        )  # fmt: skip
        reached, last, charged, sent = 0, (math.inf if after_charge else dies_at), [], []

        def trace(frame, event, _):
            nonlocal reached, last
            if frame.f_code.co_filename not in _WATCHED:
                return None
            if event == "line":
                reached += 1
                if reached == last:
                    os.kill(os.getpid(), signal.SIGKILL)
            if event == "return" and frame.f_code.co_qualname == "Ledger.charge":
                charged.append(reached)
                last = charged[0] + dies_at if after_charge else last
            return trace

        for round in range(1, ROUNDS + 1):
            order = messages.TrainOrder(round, ROUNDS, "organs", round, ROUNDS, 1e-3, local_steps=1, seed=0)
            content = messages.pack_train(
                messages.pack_arrays(self.arrays), order, self.text.hash, messages.pack_config(config)
            )
            sys.settrace(trace)
            self._send(self._ask(content, messages.TRAIN, context))
            sys.settrace(None)
            sent.append(reached)
        return [reached, min(charged), min(sent)]

    def _ask(self, content, kind, context):
        message = Message(content, 2, kind)
        message.metadata.__dict__["_message_id"] = "question"
        return message_to_proto(porter.app(message, context)).SerializeToString()

    def _send(self, answer):
        path = self.folder / f"{self.ledger.stem}-{os.getpid()}-{random.getrandbits(64):x}.sent"
        wire = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.write(wire, answer)
        os.close(wire)

    def sent(self):
        """Updates of which a byte has been on the wire since the ledger was opened."""
        answers = [path.read_bytes() for path in self.folder.glob(f"{self.ledger.stem}-*.sent")]
        return sum(WireMessage.FromString(answer).HasField("content") for answer in answers if answer)

    def left(self):
        """Updates that the audit log knows to have left; the log can be gone on with."""
        AuditLog(self.audit).head()
        lines = self.audit.read_bytes().split(b"\n")[:-1]
        records = [json.loads(line) for line in lines]
        return sum(record["event"] == "left" and record["facts"]["kind"] == messages.TRAIN for record in records)


_WATCHED = {f"{path}" for path in WATCHED}


def _patients(site):
    listed = []
    for number in range(4):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:12, 4:12, 4 + number : 12] = 1
        for part, voxels in (("imagesTr", 40 * label.astype(np.int16)), ("labelsTr", label)):
            (site / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), site / part / f"p{number}.nii.gz")
        listed.append({"image": f"imagesTr/p{number}.nii.gz", "label": f"labelsTr/p{number}.nii.gz"})
    content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, "training": listed}
    (site / "dataset.json").write_text(json.dumps(content))
    return site


@pytest.fixture
def site(tmp_path, monkeypatch):
    for name, value in (("_task_id", 1), ("_run_id", 1), ("_node_id", SUPERLINK_NODE_ID)):
        monkeypatch.setattr(TaskIdentity, name, value)
    made = Site(tmp_path)
    made.opens_a_ledger("warm")
    made.answer(dies_at=0)  # what is imported and opened with the first round, the lives are forked with
    made.opens_a_ledger("whole")
    return made


def killed(site, kills, seed):
    """Kill a site so often, half of the times between its first charge and its first sending; what it spent and sent.

    Returns:
        Updates sent, charges on record, and the charges of which nothing was sent.
    """
    lines, charge, send = site.live(dies_at=0)
    assert (site.sent(), site.left()) == (ROUNDS, ROUNDS)
    draw, accountant, updates, charges = random.Random(seed), PatientAccountant("rdp"), 0, 0
    for kill in range(kills):
        if kill % LIVES_OF_A_LEDGER == 0:
            site.opens_a_ledger(kill)
        dies_at = draw.randint(1, send - charge if kill % 2 else lines)
        assert site.live(dies_at, after_charge=bool(kill % 2)) is None
        history, sent = Ledger(site.ledger, "mercy").read(), site.sent()
        true = [Charge(history.charges[0].sampling_rate, history.charges[0].noise_multiplier, 1)] * sent if sent else []
        assert len(history.charges) >= sent
        assert accountant.epsilon(history.charges, DELTA) >= accountant.epsilon(true, DELTA)
        assert site.left() >= sent
        if (kill + 1) % LIVES_OF_A_LEDGER == 0:
            updates, charges = updates + sent, charges + len(history.charges)
    return updates, charges, charges - updates


def test_a_killed_site_has_paid_for_all_that_it_sent(site):
    updates, _, unsent = killed(site, kills=LIVES_OF_A_LEDGER, seed=1)
    assert updates + unsent > 0


@pytest.mark.slow
def test_a_hundred_kills_in_whole_private_rounds(site):
    updates, charges, unsent = killed(site, kills=100, seed=0)
    print(f"{charges} charges on record, {updates} updates sent, {unsent} charges of which nothing was sent")
    # The promise was put to the test: updates were sent, and kills came between charge and sending.
    assert updates >= 25
    assert unsent >= 25
