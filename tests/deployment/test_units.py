"""Programs are shown so that they can be pasted into a shell, or into systemd, whatever their paths hold."""

import argparse
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from client.cli import GROUPS
from strategies.deployment.processes import Place, Program
from strategies.deployment.units import render

ROOT = Path(__file__).parents[2]
FIRST = Program("superlink", ("/opt/my venv/bin/flower-superlink", "--port", "9092"), {"FLWR_HOME": "/srv/100% ours"})
SECOND = Program("superexec", ("/opt/bin/flower-superexec", "--node-config", 'site-file="/srv/a b"'), {})


def shown(form):
    return render(form, "dsm-server Lung Screening", Place(Path("/srv/consortium")), [FIRST, SECOND])


def test_a_shell_reads_the_commands_as_they_are():
    words = shlex.split(shown("commands").replace("\\\n", " "), comments=True)
    assert words == ["env", "FLWR_HOME=/srv/100% ours", *FIRST.command, *SECOND.command]


def test_units_hold_command_environment_and_order():
    first, second = shown("systemd").split("# /etc/systemd/system/")[1:]
    assert first.startswith("dsm-server-lung-screening-superlink.service")
    assert 'ExecStart="/opt/my venv/bin/flower-superlink" --port 9092' in first
    assert 'Environment="FLWR_HOME=/srv/100%% ours"' in first
    assert "ReadWritePaths=/srv/consortium" in first
    assert 'ExecStart=/opt/bin/flower-superexec --node-config "site-file=\\"/srv/a b\\""' in second
    assert "After=network-online.target dsm-server-lung-screening-superlink.service" in second
    assert "NoNewPrivileges=yes" in second


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_in_the_units(tmp_path):
    programs = [replace(each, command=(sys.executable, *each.command[1:])) for each in (FIRST, SECOND)]
    paths = []
    for unit in render("systemd", "dsm-site north", Place(tmp_path), programs).split("# /etc/systemd/system/")[1:]:
        name, _, content = unit.partition("\n")
        paths.append(tmp_path / name)
        paths[-1].write_text(content)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stderr.strip()) == (0, "")
    paths[-1].write_text(paths[-1].read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "NoNewPrivilege" in found.stderr  # so that silence means something


def test_the_container_file_names_what_is_there():
    path = ROOT / "strategies" / "deployment" / "templates" / "Containerfile"
    lines = path.read_text().splitlines()
    words = dict(line.split(" ", 1) for line in lines if line[:1].isupper())
    assert f"-f {path.relative_to(ROOT)}" in lines[0]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert words["ENTRYPOINT"] == '["dsm-site"]'
    assert scripts["dsm-site"] == "client.cli:main"
    assert words["CMD"] == '["start"]'
    commands = argparse.ArgumentParser().add_subparsers()
    for group in GROUPS:
        group.add_commands(commands)
    assert "start" in commands.choices
    assert words["USER"] != "root"
    assert {".git", ".venv", "runs"} <= set((ROOT / ".dockerignore").read_text().split())
