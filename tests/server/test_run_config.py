"""What a deployed run carries to its sites tells nothing of the coordinator; the ServerApp finds its order at home."""

import json
import shlex

import pytest
from flwr.common.serde import user_config_from_proto, user_config_to_proto

from dsm_core.config import ConfigError
from server.consortium import NODE_NAMES
from server.run_config import HOME, KEYS, ORDER, OVERRIDES, leave_order, read_task

WORDS = ("rounds=3", "out=/srv/consortium/runs", "text.weights=/srv/models/a b.safetensors", "name=first")


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "flower").mkdir()
    monkeypatch.setenv(HOME, f"{tmp_path}")
    return tmp_path


def test_no_word_and_no_path_is_in_the_bytes_that_every_site_receives(home):
    config = leave_order(home, WORDS)
    assert set(config) <= set(KEYS)
    received = b"".join(value.SerializeToString() for value in user_config_to_proto(config).values())
    for secret in (f"{home}", "/srv", "rounds", "text.weights", "first"):
        assert secret.encode() not in received
    assert received.count(b"/") == 0


def test_the_server_app_finds_words_home_and_the_sites_names(home):
    received = user_config_from_proto(user_config_to_proto(leave_order(home, WORDS)))
    (home / NODE_NAMES).write_text('{"17": "north"}')
    task = read_task(received)
    assert (task.words, task.home) == (WORDS, home)
    assert task.names() == {17: "north"}
    (home / NODE_NAMES).write_text('{"17": "north", "18": "south"}')
    assert task.names() == {17: "north", 18: "south"}


def test_a_simulation_has_its_words_in_the_run_configuration(monkeypatch):
    monkeypatch.delenv(HOME, raising=False)
    task = read_task({OVERRIDES: shlex.join(WORDS)})
    assert (task.words, task.home, task.names) == (WORDS, None, None)


def test_an_order_whose_place_was_taken_is_refused(home):
    earlier, later = leave_order(home, WORDS), leave_order(home, ["rounds=9"])
    with pytest.raises(ConfigError, match=f"the run has order {earlier[ORDER]}, and {later[ORDER]} is the latest"):
        read_task(earlier)
    with pytest.raises(ConfigError, match=r"the run has order \(none\)"):
        read_task({OVERRIDES: "rounds=1"})  # submitted past `dsm-server start`
    assert read_task(later).words == ("rounds=9",)


def test_an_order_without_its_folder_is_named(home, monkeypatch):
    config = leave_order(home, WORDS)
    assert json.loads((home / "flower" / "order.json").read_text())["overrides"] == list(WORDS)
    (home / "flower" / "order.json").unlink()
    with pytest.raises(ConfigError, match=r"order.json cannot be read .*dsm-server start"):
        read_task(config)
    monkeypatch.delenv(HOME)
    with pytest.raises(ConfigError, match=f"{HOME} is not set"):
        read_task(config)
