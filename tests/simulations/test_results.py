"""The run folder: refuses to overwrite, loses nothing, holds only finite JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dsm_core.config import Config, config_hash
from simulations.results import RunFolder, RunFolderError, write_atomically


def create(out: Path, name: str | None = "demo", resume: bool = False, config: Config | None = None) -> RunFolder:
    return RunFolder.create(out, name, config or Config(seed=7), "dsm-simulate seed=7", resume)


def test_a_new_folder_says_what_runs(tmp_path: Path) -> None:
    folder = create(tmp_path / "runs")
    info = json.loads(folder.info_path.read_text())
    assert info["command"] == "dsm-simulate seed=7"
    assert info["seed"] == 7
    assert info["finished"] is False
    assert info["config_hash"] == config_hash(Config(seed=7))
    assert {"commit", "dirty", "versions"} <= set(info)
    assert OmegaConf.load(folder.config_path).train.lr == Config().train.lr


def test_no_machine_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = create(tmp_path, config=Config(sites_dir=f"{tmp_path}/sites", out=str(tmp_path)))
    assert str(tmp_path) not in folder.config_path.read_text() + folder.info_path.read_text()
    assert OmegaConf.load(folder.config_path).sites_dir == "../sites"


def test_the_name_is_the_time_of_day_when_none_is_given(tmp_path: Path) -> None:
    assert create(tmp_path, None).path.name[:2] == "20"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-x"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="no folder name"):
        create(tmp_path, name)


def test_an_empty_folder_is_used_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    create(tmp_path)
    before = (tmp_path / "demo" / "run.json").read_bytes()
    with pytest.raises(RunFolderError, match="already holds a run"):
        create(tmp_path)
    assert (tmp_path / "demo" / "run.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        create(tmp_path, "file")


def test_resume_keeps_the_history_and_drops_a_torn_line(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.log_round("federated", {"round": 1, "loss": 1.0})
    folder.write_run_info(seconds={"generate": 2.0})
    folder.close()
    with folder.history_path.open("a") as file:
        file.write('{"method": "fed')
    again = create(tmp_path, resume=True)
    again.log_round("federated", {"round": 2, "loss": 0.5})
    again.close()
    assert [json.loads(line)["round"] for line in again.history_path.read_text().splitlines()] == [1, 2]
    info = json.loads(again.info_path.read_text())
    assert info["resumed"] == ["dsm-simulate seed=7"]
    assert info["seconds"] == {"generate": 2.0}


def test_resume_of_a_broken_folder_says_so(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.info_path.write_text("{")
    with pytest.raises(RunFolderError, match="not JSON"):
        create(tmp_path, resume=True)


def test_a_round_goes_to_history_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = create(tmp_path)
    for number, loss in ((1, 2.0), (2, float("nan"))):
        record = {"round": number, "rounds": 2, "loss": loss, "site_losses": {"a": 1.5}, "refused": [{"site": "b"}]}
        folder.log_round("federated", record)
    folder.close()
    first, second = map(json.loads, folder.history_path.read_text().splitlines())
    assert first["method"] == "federated"
    assert first["loss"] == 2.0
    assert second["loss"] is None
    events = EventAccumulator(str(folder.tensorboard_dir / "federated"))
    events.Reload()
    assert events.Scalars("loss")[0].value == 2.0
    assert events.Scalars("site_loss/a")[1].step == 2
    assert events.Scalars("refused")[0].value == 1.0


def test_matrix_holds_null_for_an_undefined_score(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.write_matrix([{"method": "local", "site": "a", "class": "liver", "status": "local", "dice": float("nan")}])
    assert json.loads(folder.matrix_path.read_text())[0]["dice"] is None


def test_run_info_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.write_run_info(seconds={"generate": 1.0}, finished=False)
    folder.write_run_info(seconds={"federated": 2.0}, finished=True)
    info = json.loads(folder.info_path.read_text())
    assert info["seconds"] == {"generate": 1.0, "federated": 2.0}
    assert info["finished"] is True


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "matrix.json"
    write_atomically(target, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("simulations.results.os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
