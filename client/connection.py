"""Where is the coordinator, with which certificate does this site call it, and where does it keep what it fetched?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strategies.tls import TlsFiles


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Options of every command that may call the coordinator."""
    group = parser.add_argument_group("connection")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the coordinator's gRPC service")
    group.add_argument("--ca", type=Path, metavar="FILE", help="certificate of the consortium's authority")
    group.add_argument("--certificate", type=Path, metavar="FILE", help="this site's certificate")
    group.add_argument("--key", type=Path, metavar="FILE", help="this site's private key")
    group.add_argument(
        "--state", type=Path, default=Path("site"), metavar="DIR", help="where the site keeps what it fetched (site)"
    )
    group.add_argument("--audit", type=Path, metavar="FILE", help="the site's audit log, told of every call")
    group.add_argument("--timeout-s", type=float, default=30.0, metavar="S", help="for each call (30)")


def tls_files(options: argparse.Namespace) -> TlsFiles | None:
    """The certificate files that were named; None where none was.

    Raises:
        TlsError: some were, and others not.
    """
    from strategies.tls import TlsError, TlsFiles  # here, so that a command line is understood before Flower is loaded

    files = {name: getattr(options, name) for name in ("ca", "certificate", "key")}
    missing = [f"--{name}" for name, path in files.items() if path is None]
    if len(missing) == len(files):
        return None
    if missing:
        raise TlsError(f"{' and '.join(missing)} is missing; --ca, --certificate and --key belong together")
    return TlsFiles(**files)
