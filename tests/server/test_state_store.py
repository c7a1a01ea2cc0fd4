"""A state on disk: whole or not there, read back bit for bit, refused by name where it is damaged or another run's."""

import contextlib
import json
import resource
from dataclasses import replace

import numpy as np
import pytest

from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import Config, ServerConfig, TextConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.text_building import build_text_space
from server.state_file import SavedState, StateError
from server.state_store import StateStore
from strategies.query_fedavg import ServerState

CONFIG = Config(rounds=9, seed=3)
CONTRACTS = {"north": LabelContract("north", 4, {"liver": ClassContract(ClassKind.ORGAN, None, 3)})}
TEXT = build_text_space([describe_class("liver")], TextConfig(encoder="offline"))


def state_after(round):
    draw = np.random.default_rng(round)
    arrays = {"encoder": draw.normal(size=(2, 3)).astype(np.float32), "scale": np.array(draw.normal(), np.float32)}
    history = tuple({"round": r, "loss": 0.1 * r, "sites": ["north"]} for r in range(1, round + 1))
    momentum = {"encoder": draw.normal(size=(2, 3))}
    further = {"moments of north": {"class_rows.bias@exp_avg": np.zeros((0, 2), np.float32), "steps": np.array(7)}}
    return SavedState(ServerState(arrays, ("liver",), round, momentum, history), CONTRACTS, TEXT, further)


def keep(folder, rounds, config=CONFIG):
    with StateStore(folder, config) as store:
        for round in rounds:
            store.keep(state_after(round))


def latest(folder, config=CONFIG):
    return StateStore(folder, config).latest()


def assert_same(found, wanted):
    for one, other in (
        (found.state.arrays, wanted.state.arrays),
        (found.state.momentum, wanted.state.momentum),
        *((found.further[group], arrays) for group, arrays in wanted.further.items()),
    ):
        assert one.keys() == other.keys()
        for key, array in other.items():
            assert (one[key].shape, one[key].dtype, one[key].tobytes()) == (array.shape, array.dtype, array.tobytes())
            assert one[key].flags.writeable
    assert (found.state.round, found.state.classes) == (wanted.state.round, wanted.state.classes)
    assert found.state.history == wanted.state.history
    assert found.contracts == wanted.contracts
    assert found.text == wanted.text
    assert found.further.keys() == wanted.further.keys()


def test_state_comes_back_bit_for_bit(tmp_path):
    keep(tmp_path, [1])
    assert_same(latest(tmp_path), state_after(1))


def test_no_state_yet_is_none(tmp_path):
    assert latest(tmp_path / "federated") is None


def test_the_last_two_states_are_kept_and_no_leftovers(tmp_path):
    keep(tmp_path, [1, 2, 3, 4])
    (tmp_path / ".round-000004.safetensors.ab.partial").write_bytes(b"cut off")
    (tmp_path / "round-000005.safetensors").write_bytes(b"its JSON never came")
    assert latest(tmp_path).state.round == 4
    keep(tmp_path, [5])
    names = sorted(path.name for path in tmp_path.iterdir())
    rounds = [f"round-00000{r}.{kind}" for r in (4, 5) for kind in ("json", "safetensors")]
    assert names == ["lock", *rounds, f"text-{TEXT.hash[:16]}.safetensors"]


def test_saving_every_third_round_still_keeps_the_last_one(tmp_path):
    config = replace(CONFIG, server=ServerConfig(save_every=3))
    with StateStore(tmp_path, config) as store:
        for round in range(1, 6):
            store.keep(state_after(round))
            store._await_writer()
            assert [path.stem for path in tmp_path.glob("*.json")] == ["round-000003"] * (round >= 3)
    assert_same(latest(tmp_path, config), state_after(5))


def test_last_state_is_kept_when_the_run_fails(tmp_path):
    config = replace(CONFIG, server=ServerConfig(save_every=9))
    with contextlib.suppress(ZeroDivisionError), StateStore(tmp_path, config) as store:
        store.keep(state_after(2))
        raise ZeroDivisionError
    assert latest(tmp_path, config).state.round == 2


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_state_is_noticed_and_the_one_before_used(tmp_path, ending, damage, caplog):
    keep(tmp_path, [1, 2])
    path = tmp_path / f"round-000002.{ending}"
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-9] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    assert_same(latest(tmp_path), state_after(1))
    if not (damage == "remove" and ending == "json"):
        assert "round-000002" in caplog.text


def test_every_state_damaged_is_an_error_that_names_them(tmp_path):
    keep(tmp_path, [1, 2])
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    with pytest.raises(
        StateError, match=r"no state of the run .* can be read: round-000002: .*; round-000001: .*; bring"
    ):
        latest(tmp_path)


def test_going_on_from_the_state_before_clears_the_damaged_one(tmp_path):
    keep(tmp_path, [3, 4])
    (tmp_path / "round-000004.json").write_text("{")
    config = replace(CONFIG, server=replace(CONFIG.server))
    with StateStore(tmp_path, config) as store:
        assert store.latest().state.round == 3
        store.keep(state_after(3))
    assert sorted(path.name for path in tmp_path.glob("round*.json")) == ["round-000003.json"]


def test_state_of_another_configuration_names_the_keys(tmp_path):
    keep(tmp_path, [1])
    other = replace(CONFIG, seed=4, server=ServerConfig(momentum=0.9), out="/elsewhere", threads=2)
    with pytest.raises(
        StateError, match=r"another configuration: seed=3 there, 4 here; server.momentum=0.0 there, 0.9 here"
    ):
        latest(tmp_path, other)
    assert latest(tmp_path, replace(CONFIG, out="/elsewhere", threads=2)) is not None


def test_full_disk_is_named_and_the_states_before_stay(tmp_path):
    keep(tmp_path, [1, 2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(StateError, match=r"the state of round 3 could not be written \(.*\); make room .* resume"):
            keep(tmp_path, [3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(latest(tmp_path), state_after(2))
    assert not list(tmp_path.glob(".*"))


def test_two_processes_do_not_work_on_one_run(tmp_path):
    with (
        StateStore(tmp_path, CONFIG),
        pytest.raises(StateError, match="another process works on the run"),
        StateStore(tmp_path, CONFIG),
    ):
        pass
    keep(tmp_path, [1])


def test_nothing_is_pickled_and_the_description_is_json(tmp_path):
    keep(tmp_path, [1])
    about = json.loads((tmp_path / "round-000001.json").read_text())
    assert about["round"] == 1
    assert about["contracts"]["north"]["classes"]["liver"]["cases"] == 3
    assert "out" not in about["config"]
