"""The configuration: typed overrides, and an error for whatever does not exist or cannot be."""

import json
from dataclasses import asdict

import pytest

from dsm_core.config import Config, ConfigError, config_from_dict, config_hash
from dsm_core.config_words import compose_config, describe_config


def test_overrides_are_typed_and_choices_are_files() -> None:
    config = compose_config(["rounds=20", "data.patch=[32,32,64]", "model=base", "text.weights=null"])
    assert (config.rounds, config.data.patch, config.text.weights) == (20, (32, 32, 64), None)
    assert (config.model.name, config.model.widths) == ("base", (48, 96, 192, 384))


def test_without_overrides_it_is_the_one_of_the_dataclasses() -> None:
    assert compose_config() == Config()
    assert config_hash(compose_config()) == config_hash(Config()) != config_hash(Config(seed=1))


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("round=20", "round"),
        ("train.lrr=1", "lrr"),
        ("model=huge", "huge"),
        ("rounds=many", "many"),
        ("rounds=0", "rounds wants at least 1"),
        ("prior.rounds=-1", "0 .leave the stage out. or more"),
        ("tumors.lr=0", "tumors.lr wants a positive number"),
        ("data.patch=[30,32,32]", "multiples of 16"),
        ("data.held_out=1", r"share in \[0, 1\)"),
        ("server.site_weight=loud", "'loud'"),
        ("server.quorum=0", "quorum"),
        ("server.participation=0", "participation"),
        ("server.save_every=0", "save_every"),
        ("text.encoder=elmo", "'elmo'"),
        ("phantom.size_mm=[100,256,256]", "every organ"),
    ],
)
def test_what_cannot_be_is_an_error(word: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        compose_config([word])


def test_configuration_survives_json_and_a_strange_key_is_named() -> None:
    config = compose_config(["rounds=20", "data.patch=[32,32,64]", "model=base", "server.participation=0.5"])
    kept = json.loads(json.dumps(asdict(config)))
    assert config_from_dict(kept) == config
    for content in (kept | {"colour": 1}, kept | {"train": kept["train"] | {"colour": 1}}):
        with pytest.raises(ConfigError, match=r"another release.*colour"):
            config_from_dict(content)


def test_every_key_is_described() -> None:
    lines = describe_config(Config()).split()
    assert {"rounds=60", "prior.rounds=100", "tumors.rounds=200", "server.quorum=0.5", "phantom.held_out=16"} <= set(
        lines
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.mode", "dp"),
        ("privacy.epsilon", "0"),
        ("privacy.epsilon", ".inf"),
        ("privacy.delta", "1"),
        ("privacy.clip_norm", "-1"),
        ("privacy.lr_factor", "0"),
        ("privacy.patches_per_patient", "0"),
        ("privacy.accountant", "moments"),
        ("privacy.trained", "encoder"),
    ],
)
def test_privacy_outside_its_range_is_named(key, value):
    with pytest.raises(ConfigError, match=key):
        compose_config([f"{key}={value}"])


def test_private_training_of_queries_leaves_the_prior_out():
    private = ["privacy.mode=dp_sgd", "privacy.trained=queries"]
    with pytest.raises(ConfigError, match=r"set prior\.rounds=0 as well"):
        compose_config(private)
    assert compose_config([*private, "prior.rounds=0"]).prior.rounds == 0


def test_epsilon_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trains openly; add privacy.mode=dp_sgd"):
        compose_config(["privacy.epsilon=2"])
    assert compose_config(["privacy.mode=dp_sgd", "privacy.epsilon=2"]).privacy.epsilon == 2
