"""Which files is an app made of? The packages that the coordinator bundles and a site compares with its own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

PACKAGES = ("client", "server", "strategies")


def installed_files() -> dict[str, Path]:
    """Every Python file of these packages as installed here, by its name in a bundle."""
    roots = {package: Path(import_module(package).__file__ or "").parent for package in PACKAGES}
    return {
        f"{package}/{path.relative_to(root).as_posix()}": path
        for package, root in sorted(roots.items())
        for path in sorted(root.rglob("*.py"))
    }
