"""How is a Flower program started here? Its place, the variables that keep it quiet, and a free port for it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from strategies.deployment.errors import DeploymentError

HOME = "FLWR_HOME"
# No app installs packages, and nothing is reported to or fetched from Flower's makers.
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# SuperExec asks for work once a second by default; an app waits for it at every message.
BRISK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
LOOPBACK = "127.0.0.1"


def flower_program(name: str) -> str:
    """Path of a Flower program beside this Python.

    Raises:
        DeploymentError: it is not installed there.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise DeploymentError(f"no program {name} beside {Path(sys.executable).name}; install flwr[simulation] there")
    return str(path)


def program_path() -> dict[str, str]:
    """PATH with this Python's programs first: SuperExec looks its helpers up by name."""
    return {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])}


def direct_loopback() -> dict[str, str]:
    """Variables that keep a proxy of the machine from being asked for its own loopback address."""
    kept = [part for part in (os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "").split(",") if part]
    hosts = ",".join(dict.fromkeys([*kept, LOOPBACK, "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def free_port() -> int:
    """A port of the loopback address on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_port_taken(port: int, host: str = LOOPBACK) -> bool:
    """True where a program cannot listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
