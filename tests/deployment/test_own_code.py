"""A site runs its own code: the coordinator's bundle passes while it is the same, and not with one byte changed."""

import io
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from client.own_code import TASKS, ForeignCode, check_app, main, write_programs
from server.bundle import app_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle():
    return app_bundle().content


def changed(bundle, edit):
    """The bundle with its files, a dict of name and bytes, edited."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    edit(files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_the_installed_app_makes_the_same_bundle_twice_and_passes(bundle):
    assert app_bundle().content == bundle
    check_app(bundle)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda files: files.update({"client/app.py": files["client/app.py"] + b"\n"}), r"1 files differ \(client/app"),
        (lambda files: files.update({"client/extra.py": b"x = 1"}), r"1 files differ \(client/extra.py"),
        (lambda files: files.update({"torch.py": b"x = 1"}), r"1 files differ \(torch.py"),
        (lambda files: files.update({"numpy/__init__.py": b"x = 1"}), "1 files differ"),
        (lambda files: files.pop("client/permission.py"), "1 are missing"),
        (lambda files: files.update({"../escape.py": b"x = 1"}), "1 files differ"),
    ],
)
def test_an_app_with_anything_else_in_it_is_refused(bundle, edit, reason):
    with pytest.raises(ForeignCode, match=reason):
        check_app(changed(bundle, edit))


def test_an_entry_point_of_another_name_is_refused(bundle):
    def edit(files):
        files["pyproject.toml"] = files["pyproject.toml"].replace(b"client.app:app", b"server.app:app")

    with pytest.raises(ForeignCode, match=r"names 'server.app:app' as its client app"):
        check_app(changed(bundle, edit))


def test_what_is_no_bundle_is_refused():
    with pytest.raises(ForeignCode, match="no Flower App Bundle"):
        check_app(b"hello")


def test_the_bundle_and_the_repository_describe_one_app(bundle):
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        described = tomllib.loads(archive.read("pyproject.toml").decode())["tool"]["flwr"]["app"]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert described["components"] == wanted["components"]
    assert described["config"] == wanted["config"]
    assert sorted(described["fab-include"]) == sorted(wanted["fab-include"])


def test_a_foreign_app_is_stopped_inside_flower_s_own_program(bundle, monkeypatch):
    from flwr.supernode import cli
    from flwr.supernode.runtime import run_clientapp as task

    installed = []
    monkeypatch.setattr(task, "install_from_fab", lambda content, **_: installed.append(content))
    monkeypatch.setattr(cli, "flwr_clientapp", lambda: None)
    main()
    task.install_from_fab(bundle, skip_prompt=True)
    with pytest.raises(ForeignCode):
        task.install_from_fab(changed(bundle, lambda files: files.update({"torch.py": b""})), skip_prompt=True)
    assert installed == [bundle]


def test_no_other_task_of_flower_runs_at_a_site(tmp_path):
    write_programs(tmp_path)
    for task in TASKS:
        refused = subprocess.run([tmp_path / task], capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "client apps only" in refused.stderr
    assert (tmp_path / "flwr-clientapp").read_text().startswith(f"#!{sys.executable}\n")
