"""What every run of a sweep would refuse is refused before anything is trained or written."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from client.ledger import LEDGER_NAME, Ledger
from dsm_core.config import ConfigError
from dsm_core.config_words import compose_config
from simulations.site_sources import refuse_large_batches
from simulations.sweep import run as sweep
from simulations.sweep.data_check import check_data

PRIVATE = "privacy.mode=dp_sgd"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sites_dir=nowhere",), "sites_dir=nowhere is no folder"),
        (("public.sites_dir=nowhere", "privacy.epsilon=0,inf"), "sites_dir=nowhere is no folder"),
        (("public.checkpoint=nowhere", "privacy.epsilon=0,inf"), "public.checkpoint=nowhere holds no model.json"),
        (("phantom.cases=8", "train.batch=9", "privacy.epsilon=8,inf"), "a generated site has 8; lower train.batch or"),
    ],
)
def test_sweep_that_no_run_could_end_trains_nothing_and_writes_nothing(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep.main([*words, f"out={tmp_path / 'runs'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_run_without_privacy_is_refused_where_a_site_keeps_a_ledger_and_the_start_alone_is_not(tmp_path, capsys):
    site = tmp_path / "sites" / "hope"
    for part in ("imagesTr", "labelsTr"):
        (site / part).mkdir(parents=True)
        for number in range(5):
            volume = nib.Nifti1Image(np.full((4, 4, 4), part == "labelsTr", np.int16), np.eye(4))
            nib.save(volume, site / part / f"p{number}.nii")
    (site / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    Ledger(site / LEDGER_NAME, "hope").create(epsilon=9.0, delta=0.01)
    words = [f"sites_dir={site.parent}", "public.seed=9", "train.batch=2", "rounds=1", "privacy.accountant=rdp"]
    words += [f"out={tmp_path / 'runs'}", "dry_run=true"]
    assert sweep.main([*words, "privacy.epsilon=0,8"]) == 0
    assert sweep.main([*words, "privacy.epsilon=0,8,inf"]) == 2
    assert "hope: a privacy ledger lies in the folder, so the site trains privately only" in capsys.readouterr().err


def test_faults_of_a_site_are_named_file_by_file(tmp_path, capsys):
    site = tmp_path / "sites" / "hope"
    site.mkdir(parents=True)
    (site / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    assert sweep.main([f"sites_dir={site.parent}", "privacy.epsilon=inf", f"out={tmp_path / 'runs'}"]) == 2
    assert "dataset.json: found 0 cases" in capsys.readouterr().err


def test_steps_as_large_as_a_site_and_steps_that_are_not_private_are_allowed():
    check_data([(PRIVATE, "phantom.cases=8", "train.batch=8"), ("phantom.cases=8", "train.batch=9")])


def test_patients_are_counted_not_their_scans_and_all_small_sites_are_named(tmp_path):
    folders = {}
    for name, patients in (
        ("hope", ("anna", "anna", "bert")),
        ("mercy", ("carl", "dora", "egon")),
        ("grace", ("fritz",)),
    ):
        folder = folders[name] = tmp_path / name
        cases = []
        for number, patient in enumerate(patients):
            for part in ("imagesTr", "labelsTr"):
                (folder / part).mkdir(parents=True, exist_ok=True)
                (folder / part / f"p{number}.nii").touch()
            files = {"image": f"imagesTr/p{number}.nii", "label": f"labelsTr/p{number}.nii"}
            cases.append({**files, "patient": patient})
        content = {"labels": {"background": 0, "liver": 1}, "training": cases}
        (folder / "dataset.json").write_text(json.dumps(content))
    config = compose_config([PRIVATE, "train.batch=3", "compare=none"])
    with pytest.raises(ConfigError, match=r"train.batch=3 patients .* hope has 2, grace has 1; lower train.batch$"):
        refuse_large_batches(config, folders)
    refuse_large_batches(compose_config([PRIVATE, "train.batch=1"]), folders)
