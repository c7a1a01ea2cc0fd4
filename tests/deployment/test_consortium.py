"""A coordinator and three sites as separate processes, from `init` to checkpoint by our commands; who is refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployment.flower import free_port
from dsm_core.config import PhantomConfig
from simulations.sites import generate_sites

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes left over are found in /proc"),
]

SITES = ("site_1", "site_2", "site_3")
RUN = ("rounds=3", "train.local_steps=1", "train.batch=1", "data.patch=[16,16,16]", "name=evidence")
ROOT = Path(__file__).parents[2]
START_TO_CHECKPOINT_S = 240.0


class Consortium:
    """A folder in which the commands are typed."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}

    def run(self, module, *words, timeout=400):
        command = [sys.executable, "-m", module, *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def server(self, *words, **options):
        return self.run("server.cli", *words, **options)

    def site(self, name, *words, **options):
        return self.run("client.cli", *words, "--folder", name, **options)

    def done(self, result):
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def found(self):
        self.done(self.server("init", "evidence", "--host", "127.0.0.1", "--no-proxy", "--port", self.port))

    def join(self, name, data):
        self.done(self.server("add-site", name))
        kit = f"consortium/kits/{name}.kit.tar.gz"
        self.done(self.site(name, "join", kit, "--data", data, "--port", free_port()))

    def accept(self, name):
        self.done(self.server("accept", name, f"{name}/{name}.csr"))
        self.done(self.site(name, "join", "--certificate", f"consortium/sites/{name}/{name}.crt"))

    def stop(self):
        said = [self.site(name, "stop") for name in SITES if (self.folder / name / "membership.json").exists()]
        said.append(self.server("stop"))
        assert all(result.returncode == 0 for result in said), [r.stderr for r in said]
        assert processes_under(self.folder) == []


def processes_under(folder):
    mark = f"DSM_PROCESS={folder}/".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in entry.read_bytes():
                found.append(entry.parent.joinpath("cmdline").read_bytes().replace(b"\0", b" ")[:200])
        except OSError:
            continue
    return found


@pytest.fixture
def consortium(tmp_path):
    made = Consortium(tmp_path)
    made.found()
    yield made
    made.stop()


def test_three_rounds_from_init_to_checkpoint_by_our_commands_within_four_minutes(consortium, tmp_path):
    started = time.monotonic()
    sites = generate_sites(tmp_path / "data", 3, PhantomConfig(cases=2, held_out=1), seed=0)
    for name, data in zip(SITES, sites.folders.values(), strict=True):
        consortium.join(name, data)
        consortium.accept(name)
    consortium.done(consortium.server("start", "--services", "--detach"))
    for name in SITES:
        consortium.done(consortium.site(name, "start", "--detach"))
    status = json.loads(consortium.done(consortium.server("status", "--json")))
    assert {site["site"]: site["connection"] for site in status["sites"]} == dict.fromkeys(SITES, "online")
    said = consortium.done(consortium.server("start", *RUN))
    took_s = time.monotonic() - started
    print(said, f"{took_s:.0f} s")
    folder = tmp_path / "consortium" / "runs" / "evidence"
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [(record["round"], sorted(record["sites"])) for record in history] == [(n, list(SITES)) for n in (1, 2, 3)]
    assert (folder / "checkpoints" / "last" / "model.json").exists()
    assert took_s < START_TO_CHECKPOINT_S
