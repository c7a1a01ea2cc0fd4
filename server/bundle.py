"""What does the coordinator submit to Flower? The installed apps as a Flower App Bundle, made in memory.

Sites compare each of its files with their own installation (`client.own_code`), so it holds nothing else: the packages
of `PACKAGES` as they are installed here, and a description of the app.
"""

from __future__ import annotations

import hashlib
from importlib import import_module, metadata
from pathlib import Path

from flwr.cli.build import build_fab_from_files
from flwr.supercore.fab import Fab

PACKAGES = ("client", "deployment", "server", "strategies")
RUN_KEYS = ("overrides", "sites-dir", "nodes")


def app_bundle() -> Fab:
    """The bundle of the installed apps; the same installation gives the same bytes."""
    files: dict[str, bytes | Path] = {"pyproject.toml": _description().encode()}
    for package in PACKAGES:
        for path in sorted(_folder(package).rglob("*.py")):
            files[f"{package}/{path.relative_to(_folder(package)).as_posix()}"] = path.read_bytes()
    content = build_fab_from_files(files)[0]
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


def _folder(package: str) -> Path:
    return Path(import_module(package).__file__ or "").parent


def _description() -> str:
    keys = "\n".join(f'{key} = ""' for key in RUN_KEYS)
    return f"""[project]
name = "fed-dsm"
version = "{metadata.version("fed-dsm")}"
description = "Federated tumour segmentation across hospitals"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fed-dsm"
fab-include = [{", ".join(f'"{package}/**/*.py"' for package in PACKAGES)}]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
{keys}
"""
