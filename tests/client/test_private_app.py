"""A private site as the server sees it: the bytes of every reply hold what the list allows, or nothing at all."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as WireMessage
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import Message as Protobuf

import client.app as porter
from client.ledger import LEDGER_NAME, Charge, Ledger
from client.privacy import PatientAccountant
from client.trainer import model_arrays
from dsm_core.classes import describe_class
from dsm_core.config import Config, DataConfig, ModelConfig, PrivacyConfig, TextConfig, TrainConfig
from dsm_core.model import build_model
from dsm_core.text_building import build_text_space
from strategies import messages
from strategies.leaving import Private, leaving

SMALL = ModelConfig(widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)
EPSILON, DELTA = 4.0, 1e-3


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    for name, value in (("_task_id", 1), ("_run_id", 1), ("_node_id", SUPERLINK_NODE_ID)):
        monkeypatch.setattr(TaskIdentity, name, value)


@pytest.fixture
def folder(tmp_path):
    """A site with four patients and a ledger."""
    site, listed = tmp_path / "mercy", []
    for number in range(4):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:12, 4:12, 4 + number : 12] = 1
        for part, voxels in (("imagesTr", 40 * label.astype(np.int16)), ("labelsTr", label)):
            (site / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), site / part / f"doe_{number}.nii.gz")
        listed.append({"image": f"imagesTr/doe_{number}.nii.gz", "label": f"labelsTr/doe_{number}.nii.gz"})
    content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, "training": listed}
    (site / "dataset.json").write_text(json.dumps(content))
    Ledger(site / LEDGER_NAME, "mercy").create(EPSILON, DELTA)
    return site


@pytest.fixture
def ask(folder):
    """A function from a privacy configuration and a round to the reply of the site, as bytes."""
    text = build_text_space([describe_class("liver"), describe_class("spleen")], TextConfig(encoder="offline"))
    arrays = model_arrays(build_model(SMALL, text))
    context = Context(1, 2, {"site-dir": str(folder)}, RecordDict(), {})

    def send(content, kind):
        message = Message(content, 2, kind)
        message.metadata.__dict__["_message_id"] = "question"
        return message_to_proto(porter.app(message, context)).SerializeToString()

    def train(privacy, round=1, rounds=2, batch=2):
        send(messages.pack_text(text.to_bytes(), text.hash), messages.TEXT)
        config = Config(
            model=SMALL, data=DataConfig(patch=(16, 16, 16)), train=TrainConfig(batch=batch), privacy=privacy
        )
        order = messages.TrainOrder(round, rounds, "organs", round, rounds, 1e-3, local_steps=1, seed=0)
        content = messages.pack_train(messages.pack_arrays(arrays), order, text.hash, messages.pack_config(config))
        return send(content, messages.TRAIN)

    train.send = send
    return train


PRIVATE = PrivacyConfig(mode="dp_sgd", epsilon=EPSILON, accountant="rdp")


def leaves(message: Protobuf, path: str = "") -> list[tuple[str, object]]:
    """Every value on the wire with its path; a keyed item is called by its key."""
    found = []
    for descriptor, value in message.ListFields():
        for item in value if isinstance(value, list) or hasattr(value, "add") else [value]:
            if isinstance(item, Protobuf):
                key = getattr(item, "key", "") or descriptor.name
                found += leaves(item, f"{path}/{key}")
            elif descriptor.name != "key":
                found.append((f"{path}/{descriptor.name}", item))
    return found


def place_of(path: str) -> str:
    """The place, as the list names it, of a value on the wire."""
    parts = path.strip("/").split("/")
    if parts[0] != "content":
        return "/".join(parts)
    record, _, *rest = parts[1:]  # record name, kind of record
    return f"{record}/{rest[0]}"


def test_private_update_holds_noised_tensors_and_nothing_that_is_dropped(ask, folder):
    data = ask(PRIVATE)
    found = {}
    for path, value in leaves(WireMessage.FromString(data)):
        found.setdefault(place_of(path), []).append(value)
    allowed = {place: leaving(messages.TRAIN, place) for place in found}
    assert all(allowed.values()), [place for place, item in allowed.items() if item is None]
    assert not [place for place, item in allowed.items() if item.private is Private.DROPPED]
    assert not any(place.startswith("metrics/") for place in found)
    assert set(found) >= {"arrays/index", "arrays/tensors"}
    names = tensors_of(data)
    assert any(name.startswith("encoder") for name in names)
    assert all(leaving(messages.TRAIN, f"arrays/{name}").private is Private.NOISED for name in names)
    # No byte is hidden between the values: names, shapes and framing are all that is left.
    values = sum(len(v) if isinstance(v, bytes | str) else 8 for each in found.values() for v in each)
    assert len(data) < values + sum(len(place) + 40 for place in found)
    for secret in (b"doe_", str(folder.parent).encode()):
        assert secret not in data
    assert len(Ledger(folder / LEDGER_NAME, "mercy").read().charges) == 1


def tensors_of(data):
    """The tensors on the wire, by name."""
    content = message_from_proto(WireMessage.FromString(data)).content
    return messages.unpack_arrays(content.array_records[messages.ARRAYS])


def refused(data):
    """The reply of a refusal; its bytes are the envelope and two words."""
    reply = WireMessage.FromString(data)
    assert len(data) < 150
    assert (reply.error.code, reply.error.reason) == (messages.BUDGET_CODE, "refused: budget")
    assert not reply.HasField("content")
    return reply


def test_over_budget_nothing_leaves_but_the_refusal(ask, folder):
    for round in (1, 2):
        ask(PRIVATE, round)
    before = (folder / LEDGER_NAME).read_bytes()
    refused(ask(PRIVATE, round=1))
    refused(ask(PRIVATE, round=2))
    refused(ask(PrivacyConfig(mode="dp_sgd", epsilon=1000.0, accountant="rdp")))
    assert (folder / LEDGER_NAME).read_bytes() == before


def test_site_with_a_ledger_never_trains_openly(ask):
    refused(ask(PrivacyConfig(mode="none")))


def test_server_learns_no_more_of_a_missing_damaged_or_other_ledger(ask, folder):
    ledger = folder / LEDGER_NAME
    sound = ledger.read_bytes()
    ledger.write_bytes(sound.replace(b"mercy", b"hopes"))
    refused(ask(PRIVATE))
    ledger.unlink()
    refused(ask(PRIVATE))
    Ledger(ledger, "hope").create(EPSILON, DELTA)
    refused(ask(PRIVATE))


def test_spending_of_an_earlier_run_counts(ask, folder):
    earlier = Ledger(folder / LEDGER_NAME, "mercy", PatientAccountant("rdp"))
    earlier.charge(Charge(0.5, 1.5, 3))
    refused(ask(PRIVATE))
    smaller = PrivacyConfig(mode="dp_sgd", epsilon=1.0, accountant="rdp")
    assert WireMessage.FromString(ask(smaller)).HasField("content")


def test_batch_larger_than_the_patients_is_named(ask):
    reply = WireMessage.FromString(ask(PRIVATE, batch=5))
    assert reply.error.code == messages.FAULT_CODE
    assert reply.error.reason.endswith("train.batch=5 patients a step, and this site has fewer; lower train.batch")


def test_enrolment_and_text_receipt_hold_what_is_declared(ask):
    for content, kind in ((messages.pack_enrol(), messages.ENROL), (messages.pack_text(b"", "x"), messages.TEXT)):
        reply = WireMessage.FromString(ask.send(content, kind))
        for path, _ in leaves(reply):
            place = place_of(path)
            assert place == "order/contract" or leaving(kind, place), place


def test_seed_of_the_server_decides_no_noise(ask):
    """The same order from the same start, twice: every trained tensor comes back different."""
    first, second = (tensors_of(ask(PRIVATE, round=2)) for _ in range(2))
    trained = [name for name in first if "conv.weight" in name]
    assert trained
    assert all((first[name] != second[name]).any() for name in trained)
