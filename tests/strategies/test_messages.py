"""Every message survives the way: packed, serialised as Flower does, unpacked."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from dsm_core.config import Config, DataConfig, TrainConfig
from strategies import messages

ARRAYS = {
    "encoder": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(3.0, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}
ORDER = messages.TrainOrder(23, 60, "prior", stage_round=3, stage_rounds=20, lr=2e-3, local_steps=5, seed=7)


def sent(content):
    return recorddict_from_proto(recorddict_to_proto(content))


def assert_equal_arrays(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable


def test_train_round_trip():
    config = messages.pack_config(Config(data=DataConfig(spacing_mm=(1, 2, 3)), train=TrainConfig(batch=7)))
    request = messages.unpack_train(sent(messages.pack_train(messages.pack_arrays(ARRAYS), ORDER, "abc", config)))
    assert_equal_arrays(request.arrays, ARRAYS)
    assert request.order == ORDER
    assert request.text_hash == "abc"
    config = messages.unpack_config(request.config)
    assert config.data.spacing_mm == (1, 2, 3)
    assert config.train.batch == 7


def test_update_round_trip_and_flowers_own_check_accepts_it():
    from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency

    metrics = {messages.NUM_CASES: 12, messages.LOSS: 0.5}
    content = sent(messages.pack_trained(ARRAYS, metrics))
    validate_message_reply_consistency([content, content], messages.NUM_CASES, check_arrayrecord=True)
    arrays, found = messages.unpack_trained(content)
    assert_equal_arrays(arrays, ARRAYS)
    assert found == metrics


def test_unpacked_tensors_belong_to_the_reader():
    record = messages.pack_arrays(ARRAYS)
    messages.unpack_arrays(record)["encoder"][:] = 9
    np.testing.assert_array_equal(messages.unpack_arrays(record)["encoder"], ARRAYS["encoder"])


def test_enrol_text_and_contract_round_trip():
    assert messages.unpack_enrol(sent(messages.pack_enrol(0.2))) == 0.2
    assert messages.unpack_contract(sent(messages.pack_contract({"site": "north"}))) == {"site": "north"}
    assert messages.unpack_text(sent(messages.pack_text(b"\x00bank", "abc"))) == (b"\x00bank", "abc")
    assert messages.unpack_text_receipt(sent(messages.pack_text_receipt("abc"))) == "abc"


def test_no_path_of_the_server_travels():
    assert "/secret" not in messages.pack_config(Config(out="/secret/runs", sites_dir="/secret/data"))


@pytest.mark.parametrize(
    ("read", "content", "reason"),
    [
        (messages.unpack_enrol, RecordDict(), "'protocol' as int, found NoneType"),
        (messages.unpack_enrol, RecordDict({"order": ConfigRecord({"protocol": 99})}), "server speaks protocol 99"),
        (messages.unpack_enrol, messages.pack_enrol(1.5), r"a share in \[0, 1\), found 1.5"),
        (messages.unpack_contract, RecordDict({"order": ConfigRecord({"contract": "{"})}), "is no JSON"),
        (messages.unpack_contract, RecordDict({"order": ConfigRecord({"contract": "[]"})}), "is a list"),
        (messages.unpack_trained, RecordDict(), "carries the records 'arrays' and 'metrics'"),
        (messages.unpack_text, RecordDict({"order": ConfigRecord({"text-space": "x"})}), "as bytes, found str"),
    ],
)
def test_wrong_content_is_named(read, content, reason):
    with pytest.raises(messages.MessageFault, match=reason):
        read(content)


def test_many_tensors_travel_as_few_objects():
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    record = messages.pack_arrays({f"tensor {i}": np.full(3, i, np.float32) for i in range(500)})
    assert len(get_all_nested_objects(record)) < 10
    assert len(messages.unpack_arrays(record)) == 500
    assert messages.unpack_arrays(messages.pack_arrays({})) == {}


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("tensors", lambda data: data[:-4], "could not be read"),
        ("tensors", lambda data: data + b"more", "came with 56 bytes, and their index tells of 52"),
        ("index", lambda data: data[:-4], "could not be read"),
        ("index", lambda data: b"7", "could not be read"),
        ("index", lambda data: data.replace(b"<f4", b"|O8", 1), "is of type object"),
        ("index", lambda data: data.replace(b"[2, 3]", b"[-1, 3]"), r"shape \[-1, 3\]"),
        ("index", lambda data: data.replace(b"[2, 3]", b'["x"]'), "could not be read"),
    ],
)
def test_torn_tensors_are_a_fault(part, change, reason):
    record = messages.pack_arrays(ARRAYS)
    record[part].data = change(record[part].data)
    with pytest.raises(messages.MessageFault, match=reason):
        messages.unpack_arrays(record)


def test_unknown_knob_is_a_fault():
    with pytest.raises(messages.MessageFault, match="other knobs"):
        messages.unpack_config('{"model": {"depth": 3}, "data": {}, "train": {}}')
