"""How does `flwr run` get a SuperLink of its own, stopped whatever happens? A private Flower home and a free port.

`flwr run . local` starts a SuperLink on a fixed port and leaves it running. A benchmark wants neither: it starts the
same program with the same options, owns the process, and names it `local` in a Flower home that nobody else uses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategies.deployment.errors import DeploymentError
from strategies.deployment.flower import HOME, QUIET, flower_program, free_port, program_path
from strategies.deployment.processes import processes_with

START_TIMEOUT_S = 90.0
COMMAND_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
LONGEST_RAY_FOLDER = 30  # Ray keeps sockets below its folder, and a socket's path holds about 100 characters


class FlowerFault(DeploymentError):
    """A Flower program that did not start, answer or end as it should; the message says which and after how long."""


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink and the environment in which the `flwr` command finds it under the name `local`."""

    home: Path
    environment: dict[str, str]

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """What a `flwr` command answers under `--format json`.

        Raises:
            FlowerFault: it takes longer than two minutes, fails, or answers something else.
        """
        said = f"`flwr {arguments[0]}`"
        text = self.flwr_text(*arguments, "--format", "json")
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise FlowerFault(f"{said} answered no JSON: {text.strip()[-500:]}") from error
        if not answer.get("success"):
            raise FlowerFault(f"{said} failed: {answer.get('error-message', answer)}")
        return answer

    def flwr_text(self, *arguments: str) -> str:
        """What a `flwr` command prints.

        Raises:
            FlowerFault: it takes longer than two minutes.
        """
        command = [flower_program("flwr"), *arguments]
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise FlowerFault(f"`flwr {arguments[0]}` did not answer within {COMMAND_TIMEOUT_S:g} s") from error
        return done.stdout or done.stderr

    def run_status(self, run_id: str) -> tuple[str, str]:
        """Status of a run as `flwr ls` tells it, such as `running` or `finished:completed`, and its details."""
        runs = {run["run-id"]: run for run in self.flwr("ls", "local", "--run-id", run_id)["runs"]}
        if run_id not in runs:
            raise FlowerFault(f"`flwr ls` does not know run {run_id}; it lists {sorted(runs)}")
        return runs[run_id]["status"], runs[run_id]["status-details"]


@contextmanager
def open_superlink(home: Path) -> Iterator[SuperLink]:
    """A SuperLink for local simulations; it and everything it started are gone when the block ends, however it ends.

    Args:
        home: an empty folder for Flower's files.

    Raises:
        FlowerFault: it does not start within 90 seconds.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {**os.environ, **QUIET, **program_path(), HOME: str(home)}
    if len(str(home)) <= LONGEST_RAY_FOLDER:
        environment["RAY_TMPDIR"] = str(home)
    options = ["--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [flower_program("flower-superlink"), *options, "--database", str(home / "state.db")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _await_health(process, port, home / "superlink.log")
            yield SuperLink(home, environment)
        finally:
            _stop(process, home)


def processes_of(home: Path) -> list[int]:
    """Processes whose environment names this Flower home, this one excepted; none where the system has no /proc."""
    return processes_with(HOME, str(home.resolve()))


def _await_health(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise FlowerFault(f"flower-superlink ended with code {code} at its start: {log.read_text()[-1500:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return
        except OSError:
            time.sleep(0.3)
    raise FlowerFault(f"flower-superlink did not answer on port {port} within {START_TIMEOUT_S:g} s")


def _stop(process: subprocess.Popen[bytes], home: Path) -> None:
    """End the SuperLink, wait for what it started to follow, then end what has not."""
    process.terminate()
    for sent in (None, signal.SIGTERM, signal.SIGKILL):
        for pid in processes_of(home):
            with suppress(ProcessLookupError):
                if sent is not None:
                    os.kill(pid, sent)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None and not processes_of(home):
                return
            time.sleep(0.2)
    process.kill()
    process.wait(STOP_TIMEOUT_S)
