"""Which code does a site run? Its own: an app from the coordinator must be, file by file, what is installed here.

Whoever controls the coordinator can submit any app, and Flower hands it to every site. So SuperExec finds this program
in the place of `flwr-clientapp`: it compares the app with the site's installation before a line of it runs.
"""

from __future__ import annotations

import hashlib
import io
import stat
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from strategies.deployment.app_files import installed_files
from strategies.deployment.files import write_file

DESCRIPTIONS = ("pyproject.toml", ".info/CONTENT")  # read as data, never run
TASKS = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")  # SuperExec knows these
CLIENT_APP = "client.app:app"
LARGEST_APP = 64 << 20


class ForeignCode(RuntimeError):
    """An app that is not the one installed at this site; nothing of it was run."""


def check_app(content: bytes) -> None:
    """Compare a Flower App Bundle with the packages installed here.

    Raises:
        ForeignCode: a file that differs, is unknown here or is missing, or an entry point of another name.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_APP:
                raise ForeignCode(f"the coordinator's app is larger than {LARGEST_APP} bytes")
            entry = tomllib.loads(archive.read(DESCRIPTIONS[0]).decode())["tool"]["flwr"]["app"]["components"][
                "clientapp"
            ]
            names = [name for name in archive.namelist() if name not in DESCRIPTIONS]
            found = {name: hashlib.sha256(archive.read(name)).digest() for name in names}
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise ForeignCode("the coordinator's app is no Flower App Bundle") from error
    if entry != CLIENT_APP:
        raise ForeignCode(f"the coordinator's app names {entry!r} as its client app, wanted {CLIENT_APP!r}")
    own = {name: hashlib.sha256(path.read_bytes()).digest() for name, path in installed_files().items()}
    changed = sorted(name for name in found if own.get(name) != found[name])
    missing = sorted(set(own) - set(found))
    if changed or missing or len(names) != len(found):
        raise ForeignCode(
            f"the coordinator's app is not the one installed at this site: {len(changed)} files differ "
            f"({', '.join(changed[:3]) or 'none'}), {len(missing)} are missing; install the same release on both sides"
        )


def main(words: Sequence[str] | None = None) -> None:
    """`flwr-clientapp`, refusing code that is not this site's."""
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp as task

    install = task.install_from_fab

    def install_own(content: bytes, *arguments: object, **options: object) -> object:
        check_app(content)
        return install(content, *arguments, **options)  # type: ignore[arg-type]

    task.install_from_fab = install_own  # type: ignore[assignment]
    flwr_clientapp()


def write_programs(folder: Path) -> None:
    """Put the programs in a folder that SuperExec looks through first.

    Beside `flwr-clientapp` stand refusals of every other task that Flower knows: a site does nothing but train.
    """
    bodies = {"flwr-clientapp": "from client.own_code import main\nmain()\n"}
    refusal = 'import sys\nsys.exit("this site runs client apps only (site.yaml: code: installed)")\n'
    for name, body in (dict.fromkeys(TASKS, refusal) | bodies).items():
        write_file(folder / name, f"#!{sys.executable}\n{body}", stat.S_IRWXU)
