"""How does a command of the site reach the coordinator? With what `dsm-site join` left in the site's folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from strategies.deployment.command_line import add_folder

if TYPE_CHECKING:
    from client.membership import Site
    from strategies.tls import TlsFiles


def add_connection(parser: argparse.ArgumentParser, timeout_s: float = 30.0) -> None:
    """Options of every command that may call the coordinator."""
    add_folder(parser, "site")
    parser.add_argument(
        "--timeout-s", type=float, default=timeout_s, metavar="S", help="longest wait for an answer (%(default)g)"
    )


def tls_files(site: Site) -> TlsFiles | None:
    """The certificate files of a site; None before the coordinator's certificate for it was imported."""
    from strategies.tls import TlsFiles  # here, so that a command line is understood before Flower is loaded

    return TlsFiles(site.ca_certificate, site.certificate, site.key) if site.is_member else None
