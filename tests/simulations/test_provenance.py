"""Provenance: says which program, and nothing about the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from simulations.provenance import DISTRIBUTIONS, installed_versions, portable_command, source_commit


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_paths_become_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    typed = ["/opt/env/bin/dsm-simulate", f"sites_dir={tmp_path}/data", f"out={tmp_path}/project/runs", "seed=1", "a b"]
    assert portable_command(typed) == "dsm-simulate sites_dir=../data out=runs seed=1 'a b'"


def test_a_path_elsewhere_keeps_only_its_last_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable_command("dsm-simulate sites_dir=/srv-of-nobody/hospital/ct") == "dsm-simulate sites_dir=.../ct"


def test_commit_of_a_checkout_and_its_dirty_mark(tmp_path: Path) -> None:
    source = tmp_path / "program.py"
    source.write_text("one")
    assert source_commit(source) == ("unknown", False)
    git(tmp_path, "init", "-q")
    assert source_commit(source) == ("unknown", False), "a file that the checkout does not hold is not its program"
    git(tmp_path, "add", "program.py")
    git(tmp_path, "commit", "-qm", "first")
    commit, dirty = source_commit(source)
    assert len(commit) >= 7
    assert not dirty
    source.write_text("two")
    assert source_commit(source) == (f"{commit}+dirty", True)


def test_versions_name_every_distribution() -> None:
    versions = installed_versions()
    assert set(versions) == set(DISTRIBUTIONS)
    assert versions["torch"][0].isdigit()
