"""The site's app: it answers every message, refuses what it must, and no path or case leaves it."""

import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity

import client.app as porter
from client.memory import export_moments, import_moments
from dsm_core.classes import describe_class
from dsm_core.config import Config, TextConfig
from dsm_core.text_building import build_text_space
from dsm_core.text_growth import grow_text_space
from strategies import messages
from strategies.manifest import manifest

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


def order(text_hash, round=1, share_moments=False, stage="organs"):
    wanted = messages.TrainOrder(round, 9, stage, round, 9, 1e-3, 5, 0, share_moments)
    return messages.pack_train(messages.pack_arrays(ARRAYS), wanted, text_hash, messages.pack_config(Config()))


class FakeSession:
    """Counts its training passes in the place of an optimiser's moments."""

    def __init__(self):
        self.passes = 0.0

    def begin(self, stage):
        self.stage = stage

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

    monkeypatch.setattr(porter, "site_session", lambda folder, config, text, device: table.sessions[table.now])
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


def test_contract_counts_no_case_that_the_run_holds_out(folder):
    content = json.loads((folder / "dataset.json").read_text())
    for case in range(4):
        for part in ("imagesTr", "labelsTr"):
            shutil.copy(folder / part / "doe-jane.nii.gz", folder / part / f"{case}.nii.gz")
        content["training"].append({"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps(content))
    for share, cases in ((0.0, 5), (0.4, 3)):
        contract = messages.unpack_contract(ask(node(folder), messages.pack_enrol(share), messages.ENROL).content)
        assert contract["cases"] == contract["classes"]["liver"]["cases"] == cases


def test_faults_of_the_folder_are_counted_and_not_named(folder):
    (folder / "labelsTr" / "doe-jane.nii.gz").unlink()
    reply = ask(node(folder), messages.pack_enrol(), messages.ENROL)
    assert reply.error.code == messages.FAULT_CODE
    assert "dsm-site check" in reply.error.reason
    assert "doe" not in reply.error.reason
    assert str(folder.parent) not in reply.error.reason


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("doe-jane.nii.gz"), "RuntimeError"),
        (OSError(28, "no room for doe-jane", "doe-jane.nii.gz"), "OSError (No space left on device)"),
    ],
)
def test_unexpected_error_is_named_by_its_type_and_no_word_of_its_own(
    folder, bank, processes, monkeypatch, error, told
):
    def fail(*_):
        raise error

    monkeypatch.setattr(porter, "train_round", fail)
    context = node(folder)
    deliver(context, bank)
    reply = ask(context, order(bank.hash), messages.TRAIN)
    assert reply.error.reason == f"{told} at the site; its own log has the details"


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


def test_the_site_s_own_device_is_used_and_named_where_it_is_not_there(folder, bank):
    (folder.parent / "site.yaml").write_text(f"data: {folder}\ndevice: cuda:97\n")
    context = node(folder)
    context.node_config["site-file"] = f"{folder.parent / 'site.yaml'}"
    deliver(context, bank)
    reply = ask(context, order(bank.hash), messages.TRAIN)
    assert reply.error.code == messages.FAULT_CODE
    assert "device cuda:97 is not available here" in reply.error.reason
    assert f"{folder.parent}" not in reply.error.reason


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


def test_round_that_broke_off_half_way_leaves_no_trace(folder, bank, processes, monkeypatch):
    context, whole = node(folder), porter.train_round
    deliver(context, bank)
    assert passes(ask(context, order(bank.hash, 1), messages.TRAIN)) == 1

    def break_off(session, arrays, wanted):
        whole(session, arrays, wanted)
        raise MemoryError

    monkeypatch.setattr(porter, "train_round", break_off)
    assert ask(context, order(bank.hash, 2), messages.TRAIN).has_error()
    monkeypatch.setattr(porter, "train_round", whole)
    assert passes(ask(context, order(bank.hash, 3), messages.TRAIN)) == 2


def test_exported_moments_go_on_in_another_context(folder, bank, processes):
    context, resumed = node(folder), node(folder)
    deliver(context, bank)
    assert export_moments(context) == {}
    for round in (1, 2):
        ask(context, order(bank.hash, round), messages.TRAIN)
    kept = export_moments(context)
    assert int(kept["steps of organs"]) == 2 * 5
    import_moments(resumed, kept)
    deliver(resumed, bank)
    processes.now = 1
    assert passes(ask(resumed, order(bank.hash, 3), messages.TRAIN)) == 3


def test_moments_of_an_earlier_stage_are_not_gone_on_with(folder, bank, processes):
    context, resumed = node(folder), node(folder)
    deliver(context, bank)
    for round in (1, 2):
        assert passes(ask(context, order(bank.hash, round), messages.TRAIN)) == round
    assert passes(ask(context, order(bank.hash, 4, stage="prior"), messages.TRAIN)) == 1
    kept = export_moments(context)
    assert int(kept["steps of prior"]) == 5
    import_moments(resumed, kept)
    deliver(resumed, bank)
    processes.now = 1
    assert passes(ask(resumed, order(bank.hash, 5, stage="prior"), messages.TRAIN)) == 2


def test_kept_moments_gain_a_row_for_a_class_that_joins(folder, bank, processes):
    context = node(folder)
    deliver(context, bank)
    rows = np.array([[1.0], [2.0]], np.float32)
    import_moments(context, {"class_rows.bias@exp_avg": rows, "steps of organs": np.array(4)})
    grown = grow_text_space(bank, [describe_class("omentum")])
    deliver(context, grown)
    assert grown.names == ("liver", "omentum", "spleen")
    np.testing.assert_array_equal(export_moments(context)["class_rows.bias@exp_avg"], [[1], [0], [2]])


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


# The audit log: what leaves is recorded first, and unrecorded nothing leaves.


@pytest.fixture
def audited(folder, tmp_path):
    """A node of the site that keeps an audit log, and the log's records."""
    path = tmp_path / "site" / "audit.jsonl"
    context = node(folder)
    context.node_config["audit"] = str(path)
    return context, lambda: [json.loads(line) for line in path.read_text().splitlines()]


def test_audit_log_tells_what_left_and_what_was_refused(audited, bank, processes):
    context, records = audited
    contract = ask(context, messages.pack_enrol(), messages.ENROL)
    deliver(context, bank)
    ask(context, order("0" * 64), messages.TRAIN)
    ask(context, order(bank.hash, 1), messages.TRAIN)
    ask(context, order(bank.hash, 2), messages.TRAIN)
    enrolled, received, refused, first, second = records()
    assert [record["event"] for record in records()] == ["left", "left", "refused", "left", "left"]
    sent = contract.content.config_records["order"]["contract"]
    assert enrolled["facts"]["values"]["contract"]["bytes"] == len(json.dumps(sent))
    assert received["facts"]["bank"] == first["facts"]["bank"] == bank.hash
    assert (refused["facts"]["bank"], refused["facts"]["code"]) == ("0" * 64, messages.TEXT_CODE)
    assert first["facts"]["tensors"] == 1
    assert first["facts"]["names"] == ["encoder float32 3"]
    assert first["facts"]["metrics"] == ["loss", "num-cases"]
    assert len(first["facts"]["configuration"]) == 64
    assert "names" not in second["facts"]
    assert second["facts"]["layout"] == first["facts"]["layout"]
    assert "doe" not in json.dumps(records())


def test_server_and_site_describe_equal_tensors_alike(audited, bank, processes):
    context, records = audited
    deliver(context, bank)
    reply = ask(context, order(bank.hash), messages.TRAIN)
    arrived = messages.pack_arrays(messages.unpack_trained(reply.content)[0])
    assert manifest(RecordDict({"arrays": arrived}))["content"] == records()[-1]["facts"]["content"]


def test_nothing_leaves_a_site_whose_audit_log_cannot_be_written(audited, bank, processes, tmp_path):
    context, _ = audited
    deliver(context, bank)
    path = tmp_path / "site" / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-2] + b"\n")
    reply = ask(context, order(bank.hash), messages.TRAIN)
    assert reply.error.code == messages.FAULT_CODE
    assert "audit log cannot be written, so nothing leaves" in reply.error.reason
    assert str(tmp_path) not in reply.error.reason


def test_no_audit_log_is_kept_where_none_is_configured(folder, bank, tmp_path):
    deliver(node(folder), bank)
    assert not list(tmp_path.rglob("audit*"))
