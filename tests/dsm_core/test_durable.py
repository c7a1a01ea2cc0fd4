"""A file is replaced whole or stays as it was, and has its mode from its first moment."""

import os
import stat

import pytest

from dsm_core.durable import replace_file


@pytest.mark.parametrize(("mode", "found"), [(None, 0o640), (0o600, 0o600)])
def test_a_file_is_born_with_its_mode(tmp_path, monkeypatch, mode, found):
    modes, original, before = [], os.fsync, os.umask(0o027)
    monkeypatch.setattr(os, "fsync", lambda fd: (modes.append(stat.S_IMODE(os.fstat(fd).st_mode)), original(fd)))
    try:
        replace_file(tmp_path / "state", b"new", mode)
    finally:
        os.umask(before)
    assert modes[0] == stat.S_IMODE((tmp_path / "state").stat().st_mode) == found


def test_a_full_disk_leaves_the_old_content_and_no_rest(tmp_path, monkeypatch):
    replace_file(tmp_path / "state", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "state", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("state", b"old")]
