"""How does a benchmark get a deployed consortium of its own? Our commands, on loopback, stopped whatever happens."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import client.cli
import server.cli
from strategies.deployment.errors import DeploymentError
from strategies.deployment.flower import LOOPBACK, free_port


class CommandFault(DeploymentError):
    """A command of the consortium that failed; its own words went to stderr."""


@dataclass(frozen=True)
class LocalConsortium:
    """A coordinator and its sites, each in a folder of its own and running in processes of their own."""

    coordinator: Path
    sites: Mapping[str, Path]

    def train(self, *keys: str) -> Path:
        """The folder of a run that completed.

        Args:
            keys: of the run, `name=NAME` among them.
        """
        said = _done(server.cli.main, "start", *keys, "--folder", f"{self.coordinator}")
        return Path(said.rsplit("completed: ", 1)[1].strip()).parents[1]


@contextmanager
def open_consortium(work: Path, sites: Mapping[str, Path]) -> Iterator[LocalConsortium]:
    """A consortium with its sites connected; nothing of it runs any more when the block ends, however it ends.

    Args:
        work: an empty folder. sites: data folder by the name of the site.

    Raises:
        CommandFault: a command failed.
    """
    made = LocalConsortium(work / "consortium", {name: work / name for name in sites})
    home = ("--folder", f"{made.coordinator}")
    ports = ("--port", f"{free_port()}", "--service-port", f"{free_port()}")
    _done(server.cli.main, "init", "benchmark", "--no-proxy", "--host", LOOPBACK, *ports, *home)
    joined: list[str] = []
    try:
        for name, data in sites.items():
            own = ("--folder", f"{made.sites[name]}")
            _done(server.cli.main, "add-site", name, *home)
            kit = f"{made.coordinator}/kits/{name}.kit.tar.gz"
            _done(client.cli.main, "join", kit, "--data", f"{data}", "--port", f"{free_port()}", *own)
            joined.append(name)
            _done(server.cli.main, "accept", name, f"{made.sites[name]}/{name}.csr", *home)
            certificate = f"{made.coordinator}/sites/{name}/{name}.crt"
            _done(client.cli.main, "join", "--certificate", certificate, *own)
        _done(server.cli.main, "start", "--services", "--detach", *home)
        for folder in made.sites.values():
            _done(client.cli.main, "start", "--detach", "--folder", f"{folder}")
        yield made
    finally:
        for name in joined:
            _done(client.cli.main, "stop", "--folder", f"{made.sites[name]}")
        _done(server.cli.main, "stop", *home)


def _done(command: Callable[[Sequence[str]], int], *words: str) -> str:
    """What a command printed.

    Raises:
        CommandFault: it did not end with 0.
    """
    said = io.StringIO()
    with redirect_stdout(said):
        code = command(list(words))
    if code:
        raise CommandFault(f"`{words[0]}` ended with {code}: {said.getvalue().strip()[-1000:]}")
    return said.getvalue()
