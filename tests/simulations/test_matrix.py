"""Held-out cases: what a run scores is never what a site trains on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from client.training import open_datalist
from dsm_core.config import Config, DataConfig
from simulations.matrix import held_out_datalists


def make_site(root: Path, name: str, cases: int) -> Path:
    """A site folder whose scans are empty files: nothing opens them here."""
    folder = root / name
    listed = []
    for case in range(cases):
        paths = {"image": f"imagesTr/pt_{case}.nii.gz", "label": f"labelsTr/pt_{case}.nii.gz"}
        for path in paths.values():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        listed.append(paths)
    content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, "training": listed}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_scored_and_trained_cases_share_none_and_miss_none(tmp_path: Path) -> None:
    folders = {name: make_site(tmp_path, name, cases) for name, cases in (("a", 5), ("b", 11))}
    for seed in (0, 7):
        config = Config(seed=seed, data=DataConfig(held_out=0.2))
        scored = held_out_datalists(config, folders, None)
        for site, folder in folders.items():
            trained = {case.name for case in open_datalist(folder, config).cases}
            held = {case.name for case in scored[site].cases}
            assert held
            assert not trained & held
            assert len(trained | held) == len(open_datalist(folder, replace(config, data=DataConfig())).cases)


def test_one_eval_folder_serves_all_sites_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folders = {name: make_site(tmp_path / "sites", name, 2) for name in ("a", "b")}
    shared = held_out_datalists(Config(), folders, make_site(tmp_path, "eval", 3))
    assert shared["a"] is shared["b"]
    make_site(tmp_path / "each", "a", 1)
    with pytest.raises(ValueError, match=r"no folder for b;"):
        held_out_datalists(Config(), folders, tmp_path / "each")
