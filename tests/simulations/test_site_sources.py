"""A site that keeps a privacy ledger is not trained openly in a simulation either, nor beside one."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from client.ledger import LEDGER_NAME
from dsm_core.config import ConfigError
from dsm_core.config_words import compose_config
from simulations.site_sources import find_sites, with_held_out

PRIVATE = ("privacy.mode=dp_sgd", "train.batch=2")


@pytest.fixture
def root(tmp_path):
    """Two sites of ten scans; the second keeps a ledger."""
    for site in ("hope", "mercy"):
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / site / part).mkdir(parents=True)
            for number in range(10):
                volume = nib.Nifti1Image(np.full((4, 4, 4), part == "labelsTr", np.int16), np.eye(4))
                nib.save(volume, tmp_path / site / part / f"p{number}.nii")
        (tmp_path / site / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    (tmp_path / "mercy" / LEDGER_NAME).touch()
    return tmp_path


def found(root, *words):
    return find_sites(with_held_out(compose_config([f"sites_dir={root}", *words])))


@pytest.mark.parametrize("words", [("compare=none",), (*PRIVATE, "compare=local"), (*PRIVATE, "compare=all")])
def test_open_training_at_a_site_with_a_ledger_is_refused(root, words):
    with pytest.raises(ConfigError, match=r"^mercy: a privacy ledger lies in the folder, so the site trains privately"):
        found(root, *words)


def test_private_training_or_none_is_allowed_and_sites_without_a_ledger_may_do_both(root):
    scored_alone = ("start=public", "rounds=0", "prior.rounds=0", "tumors.rounds=0")
    for words in PRIVATE, scored_alone:
        assert list(found(root, *words, "compare=none").folders) == ["hope", "mercy"]
    (root / "mercy" / LEDGER_NAME).unlink()
    assert not found(root).is_generated
