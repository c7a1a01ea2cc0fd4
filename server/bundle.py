"""What does the coordinator submit to Flower? The installed apps as a Flower App Bundle, made in memory.

Sites compare each of its files with their own installation (`client.own_code`), so it holds nothing else: the packages
of `deployment.app_files` as they are installed here, and a description of the app.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from flwr.cli.build import build_fab_from_files
from flwr.supercore.fab import Fab

from server.run_config import KEYS
from strategies.deployment.app_files import PACKAGES, installed_files


def app_bundle() -> Fab:
    """The bundle of the installed apps; the same installation gives the same bytes."""
    files: dict[str, bytes | Path] = {"pyproject.toml": _description().encode()}
    files |= installed_files()
    content = build_fab_from_files(files)[0]
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


def _description() -> str:
    keys = "\n".join(f'{key} = ""' for key in KEYS)
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
