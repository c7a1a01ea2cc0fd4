"""A private file is private from its first moment and never half written."""

import os
import stat

import pytest

from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import check_owner_only, make_private_folder, read_file, write_file


def test_a_private_file_is_born_private(tmp_path, monkeypatch):
    modes = []
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (modes.append(stat.S_IMODE(os.fstat(fd).st_mode)), original(fd)))
    write_file(tmp_path / "key", b"secret")
    assert modes[0] == 0o600
    check_owner_only(tmp_path / "key")


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path, monkeypatch):
    write_file(tmp_path / "facts", "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DeploymentError, match="No space left on device; nothing was changed"):
        write_file(tmp_path / "facts", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]
    assert (tmp_path / "facts").read_text() == "old"


def test_a_folder_that_was_open_to_others_is_closed(tmp_path):
    (tmp_path / "ca").mkdir(mode=0o755)
    assert make_private_folder(tmp_path / "ca").stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_too_large_or_missing_is_named(tmp_path):
    (tmp_path / "big").write_bytes(bytes(11))
    with pytest.raises(DeploymentError, match="larger than 10 bytes; wanted a kit"):
        read_file(tmp_path / "big", "a kit", limit=10)
    with pytest.raises(DeploymentError, match=r"No such file or directory\); wanted a kit"):
        read_file(tmp_path / "none", "a kit")
