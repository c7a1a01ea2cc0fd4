"""The site's app: it answers every message, refuses what it must, and no path or case leaves it."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity

import client.app as porter
from dsm_core.classes import describe_class
from dsm_core.config import Config, TextConfig
from dsm_core.text_space import build_text_space
from strategies import messages

ARRAYS = {"encoder": np.zeros(3, np.float32)}


@pytest.fixture(scope="module")
def bank():
    return build_text_space([describe_class("liver"), describe_class("spleen")], TextConfig(encoder="offline"))


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", SUPERLINK_NODE_ID)


@pytest.fixture
def folder(tmp_path):
    """A site `mercy` with one patient, `doe-jane`."""
    site = tmp_path / "mercy"
    for part, value in (("imagesTr", 40), ("labelsTr", 1)):
        (site / part).mkdir(parents=True)
        image = nib.Nifti1Image(np.full((4, 4, 4), value, np.int16), np.eye(4))
        nib.save(image, site / part / "doe-jane.nii.gz")
    listed = [{"image": "imagesTr/doe-jane.nii.gz", "label": "labelsTr/doe-jane.nii.gz"}]
    content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, "training": listed}
    (site / "dataset.json").write_text(json.dumps(content))
    return site


def node(folder):
    return Context(1, 2, {"site-dir": str(folder)}, RecordDict(), {})


def ask(context, content, kind):
    message = Message(content, 2, kind)
    message.metadata.__dict__["_message_id"] = "question"
    return porter.app(message, context)


def order(text_hash, round=1, share_moments=False):
    wanted = messages.TrainOrder(round, 9, 1e-3, 5, 0, share_moments)
    return messages.pack_train(messages.pack_arrays(ARRAYS), wanted, text_hash, messages.pack_config(Config()))


class FakeSession:
    """Counts its training passes in the place of an optimiser's moments."""

    def __init__(self):
        self.passes = 0.0

    def optimizer_arrays(self):
        return {"passes": np.array([self.passes])}

    def load_optimizer_arrays(self, moments, steps=0):
        self.passes = float(moments["passes"][0]) if moments else 0.0


@pytest.fixture
def processes(monkeypatch):
    """Two processes of one site; `processes.now` is the one that handles the next message."""
    table = SimpleNamespace(now=0, sessions=[FakeSession(), FakeSession()], loads=0)

    def train_round(session, arrays, wanted, ledger_file):
        session.passes += 1
        return SimpleNamespace(arrays=arrays, metrics={"loss": session.passes, "num-cases": 1})

    monkeypatch.setattr(porter, "site_session", lambda folder, config, text: table.sessions[table.now])
    monkeypatch.setattr(porter, "train_round", train_round)
    return table


def passes(reply):
    return messages.unpack_trained(reply.content)[1]["loss"]


def deliver(context, bank):
    return ask(context, messages.pack_text(bank.to_bytes(), bank.hash), messages.TEXT)


def test_enrolment_tells_the_contract_and_no_patient(folder):
    reply = ask(node(folder), messages.pack_enrol(), messages.ENROL)
    contract = messages.unpack_contract(reply.content)
    assert contract["site"] == "mercy"
    assert contract["classes"]["liver"]["cases"] == 1
    assert "doe" not in json.dumps(contract)


def test_faults_of_the_folder_are_counted_and_not_named(folder):
    (folder / "labelsTr" / "doe-jane.nii.gz").unlink()
    reply = ask(node(folder), messages.pack_enrol(), messages.ENROL)
    assert reply.error.code == messages.FAULT_CODE
    assert "dsm-site check" in reply.error.reason
    assert "doe" not in reply.error.reason
    assert str(folder.parent) not in reply.error.reason


def test_unexpected_error_is_named_by_its_type_only(folder, bank, processes, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", f"{folder}/doe-jane.nii.gz")

    monkeypatch.setattr(porter, "train_round", fail)
    context = node(folder)
    deliver(context, bank)
    reply = ask(context, order(bank.hash), messages.TRAIN)
    assert reply.error.reason == "OSError at the site; its own log has the details"


def test_training_without_a_text_space_or_with_another_is_refused(folder, bank, processes):
    context = node(folder)
    reply = ask(context, order(bank.hash), messages.TRAIN)
    assert reply.error.code == messages.TEXT_CODE
    assert "holds text space none" in reply.error.reason
    assert messages.unpack_text_receipt(deliver(context, bank).content) == bank.hash
    reply = ask(context, order("0" * 64), messages.TRAIN)
    assert reply.error.code == messages.TEXT_CODE
    assert bank.hash[:12] in reply.error.reason
    assert passes(ask(context, order(bank.hash), messages.TRAIN)) == 1


def test_corrupted_text_space_is_not_kept(folder, bank, processes):
    context, content = node(folder), bytearray(bank.to_bytes())
    content[-1] ^= 1
    reply = ask(context, messages.pack_text(bytes(content), bank.hash), messages.TEXT)
    assert reply.error.code == messages.FAULT_CODE
    assert ask(context, order(bank.hash), messages.TRAIN).error.code == messages.TEXT_CODE


def test_text_space_with_another_hash_than_stated_is_not_kept(folder, bank):
    context = node(folder)
    reply = ask(context, messages.pack_text(bank.to_bytes(), "0" * 64), messages.TEXT)
    assert reply.error.code == messages.TEXT_CODE
    assert not context.state


def test_moments_follow_the_site_from_process_to_process(folder, bank, processes):
    context = node(folder)
    deliver(context, bank)
    for round, process in enumerate((0, 1, 1, 0), start=1):
        processes.now = process
        assert passes(ask(context, order(bank.hash, round), messages.TRAIN)) == round


def test_new_run_begins_without_the_moments_of_the_last(folder, bank, processes):
    for _ in range(2):
        context = node(folder)
        deliver(context, bank)
        assert passes(ask(context, order(bank.hash), messages.TRAIN)) == 1
        assert passes(ask(context, order(bank.hash, 2), messages.TRAIN)) == 2


def test_moments_that_travel_are_not_kept_at_the_site(folder, bank, processes):
    context = node(folder)
    deliver(context, bank)
    for round in (1, 2):
        ask(context, order(bank.hash, round, share_moments=True), messages.TRAIN)
    assert not context.state.array_records


def test_node_without_a_folder_says_how_to_name_one():
    reply = ask(Context(1, 2, {}, RecordDict(), {}), messages.pack_enrol(), messages.ENROL)
    assert "this node knows no data folder" in reply.error.reason


def test_partition_finds_its_folder_and_one_too_many_is_named(folder):
    def partition(number):
        context = Context(1, 2, {"partition-id": number}, RecordDict(), {"sites-dir": str(folder.parent)})
        return ask(context, messages.pack_enrol(), messages.ENROL)

    assert messages.unpack_contract(partition(0).content)["site"] == "mercy"
    assert "node 1 and sites-dir holds 1 site folders" in partition(1).error.reason
