"""Programs are shown so that they can be pasted into a shell, or into systemd, whatever their paths hold."""

import shlex
from pathlib import Path

from strategies.deployment.processes import Place, Program
from strategies.deployment.units import render

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
