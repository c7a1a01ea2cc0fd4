"""A run goes on with its own configuration, and with nothing that would make it another run."""

import json
import os
import stat
from dataclasses import replace

import pytest

from dsm_core.config import Config, ConfigError, TrainConfig
from server.resume import forget_state, recall_config, remember_config


@pytest.fixture
def run(tmp_path):
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    return tmp_path / "runs" / "trial"


def test_configuration_comes_back_whole_with_absolute_paths(run, tmp_path, monkeypatch):
    (tmp_path / "sites").mkdir()
    monkeypatch.chdir(tmp_path)
    config = Config(rounds=7, sites_dir="sites", threads=1, train=TrainConfig(lr=0.1), out="runs")
    remember_config(run, config)
    monkeypatch.chdir("/")
    recalled, folder = recall_config([f"resume={run}"])
    assert folder == run
    assert recalled == replace(config, sites_dir=str(tmp_path / "sites"), out=str(run.parent))


def test_only_out_and_threads_may_change(run):
    remember_config(run, Config(rounds=7))
    recalled, _ = recall_config([f"resume={run}", "threads=2", "out=/elsewhere"])
    assert (recalled.rounds, recalled.threads, recalled.out) == (7, 2, "/elsewhere")
    with pytest.raises(ConfigError, match=r"leave out rounds, train\.lr"):
        recall_config([f"resume={run}", "rounds=9", "train.lr=1"])


def test_kept_paths_are_for_the_owner_only_and_go_in_the_end(run):
    remember_config(run, Config())
    mode = stat.S_IMODE(os.stat(run / "state" / "config.json").st_mode)
    assert mode == 0o600
    forget_state(run)
    assert not (run / "state").exists()


def test_what_is_no_stopped_run_is_named(run, tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        recall_config([f"resume={tmp_path}/nowhere"])
    with pytest.raises(ConfigError, match=r"holds no state/config.json: the run is finished"):
        recall_config([f"resume={run}"])
    remember_config(run, Config())
    path = run / "state" / "config.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        recall_config([f"resume={run}"])
    path.write_text(json.dumps({"colour": 1}))
    with pytest.raises(ConfigError, match="another release"):
        recall_config([f"resume={run}"])
