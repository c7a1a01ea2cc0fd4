"""A consortium whose commands are typed as a person types them: processes of their own, in an empty folder."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from server.waiting import read_progress
from strategies.deployment.flower import free_port
from strategies.deployment.processes import Place, processes_with, running_pid

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

    def apps(self, folder, app):
        """Processes that run an app of Flower now, `clientapp` of a site or `serverapp` of the coordinator."""
        found = processes_with(*Place(self.folder / folder).mark("superexec"))
        return [pid for pid in found if f"flwr-{app}".encode() in _read(f"/proc/{pid}/cmdline")]

    @staticmethod
    def kill(processes):
        """With -9."""
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def cut_power(self, folder):
        """End every command and program of a site or of the coordinator at once, those first that start others."""
        place = Place(self.folder / folder)
        self.kill(pid for name in ("run", "supervisor") if (pid := running_pid(place, name)))
        programs = ("supernode", "superlink", "superexec", "text-service")
        self.kill(pid for name in programs for pid in processes_with(*place.mark(name)))

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


def _read(path):
    with suppress(OSError):
        return Path(path).read_bytes()
    return b""


class Run:
    """`dsm-server start` of a run, at work beside services that run already."""

    patience_s = 1200.0  # for anything that has to happen

    def __init__(self, consortium, name, *words):
        self.consortium, self.home = consortium, consortium.folder / "consortium"
        self.folder, self._said = self.home / "runs" / name, consortium.folder / f"{name}.said"
        command = [sys.executable, "-m", "server.cli", "start", *words, f"name={name}"]
        with self._said.open("wb") as said:
            self.command = subprocess.Popen(
                command, cwd=consortium.folder, env=consortium.environment, stdout=said, stderr=said
            )

    @property
    def said(self):
        return self._said.read_text()

    def history(self):
        path = self.folder / "history.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def until(self, condition, why):
        deadline = time.monotonic() + Run.patience_s
        while not (found := condition()):
            is_hopeless = time.monotonic() > deadline or (self.command.poll() is not None and not condition())
            assert not is_hopeless, f"waited in vain for {why}; {self.said[-2000:]}"
            time.sleep(0.2)
        return found

    def until_training(self, round, site="north"):
        """Wait until a site works on its order; the processes of its app."""

        def at_work():
            progress = read_progress(self.folder)
            is_asked = progress.get("phase") == "training" and progress["round"] == round
            return is_asked and site in progress["waiting_for"] and self.consortium.apps(site, "clientapp")

        return self.until(at_work, f"{site} in round {round}")

    def record_of(self, round):
        return self.until(lambda: self.history()[round - 1 :], f"round {round}")[0]

    def record_with(self, site, after):
        """The first round after one in which a site takes part."""

        def found():
            return [record for record in self.history() if record["round"] > after and site in record["sites"]]

        return self.until(found, f"{site} to come back")[0]

    def completes(self, rounds):
        """The history of the run, which has to complete."""
        assert self.command.wait(Run.patience_s) == 0, self.said
        history = self.history()
        assert [record["round"] for record in history] == list(range(1, rounds + 1))
        assert (self.folder / "checkpoints" / "last" / "model.json").exists()
        assert read_progress(self.folder)["phase"] == "finished"
        return history


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


@pytest.fixture
def train(consortium):
    """Starts runs, and ends what is left of them."""
    begun = []

    def begin(name, *words):
        begun.append(Run(consortium, name, *words))
        return begun[-1]

    yield begin
    for run in begun:
        run.command.terminate()
        run.command.wait(Run.patience_s)
