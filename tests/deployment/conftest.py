"""A consortium whose commands are typed as a person types them: processes of their own, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strategies.deployment.flower import free_port

ROOT = Path(__file__).parents[2]


class TypedConsortium:
    """Runs `dsm-server` and `dsm-site` in one folder; everything is ended by `stop`."""

    def __init__(self, folder, *options):
        self.folder, self.port, self.joined = folder, free_port(), []
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
        ports = ("--port", self.port, "--service-port", free_port())
        self.done(self.server("init", "evidence", "--host", "127.0.0.1", *ports, *options))

    def run(self, module, *words):
        command = [sys.executable, "-m", module, *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )

    def server(self, *words):
        return self.run("server.cli", *words)

    def site(self, name, *words):
        return self.run("client.cli", *words, "--folder", name)

    def site_alone(self, *words):
        """A command of a site that needs no membership."""
        return self.run("client.cli", *words)

    @staticmethod
    def done(result):
        """What a command said that had to succeed."""
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    @staticmethod
    def refused(result):
        """The reason of a command that had to be refused, in one line and without a traceback."""
        assert result.returncode == 1, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr

    def join(self, name, data, folder="consortium"):
        self.done(self.server("add-site", name, "--folder", folder))
        kit = f"{folder}/kits/{name}.kit.tar.gz"
        self.joined.append(name)
        self.done(self.site(name, "join", kit, "--data", data, "--port", free_port()))

    def accept(self, name, folder="consortium"):
        self.done(self.server("accept", name, f"{name}/{name}.csr", "--folder", folder))
        self.done(self.site(name, "join", "--certificate", f"{folder}/sites/{name}/{name}.crt"))

    def stop(self):
        for name in self.joined:
            self.done(self.site(name, "stop"))
        self.done(self.server("stop"))
        assert processes_under(self.folder) == []


def processes_under(folder):
    """Command lines of processes that our commands started in a folder and that still run."""
    mark = f"DSM_PROCESS={folder}/".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in entry.read_bytes():
                found.append(entry.parent.joinpath("cmdline").read_bytes().replace(b"\0", b" ")[:200])
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def typed_consortium(tmp_path_factory):
    """Founds consortia in folders of their own: `typed_consortium(name, *options of init)`."""
    made = []

    def found(name, *options):
        made.append(TypedConsortium(tmp_path_factory.mktemp(name), *options))
        return made[-1]

    yield found
    for consortium in made:
        consortium.stop()


@pytest.fixture(scope="module")
def empty_data(tmp_path_factory):
    """A data folder that `site.yaml` may name, for sites that never train."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "dataset.json").write_text("{}")
    return folder
