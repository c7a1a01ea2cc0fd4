"""`dsm-site`: what a hospital runs by hand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from client.ledger_commands import add_commands
from client.site import check_site


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; 0 where all is well, 1 where the site's data has faults, 2 for a mistyped command."""
    parser = argparse.ArgumentParser(prog="dsm-site", description="A site's own commands.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="every fault of a data folder, its label contract and its scans in summary",
        description="Open every scan of a data folder (MSD or nnU-Net layout). Exit code 1 where it has faults.",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="folder with dataset.json, imagesTr/ and labelsTr/")
    check.add_argument("--json", action="store_true", help="the report as JSON")
    check.set_defaults(run=_check)
    add_commands(commands)
    options = parser.parse_args(arguments)
    return options.run(options)


def _check(options: argparse.Namespace) -> int:
    report = check_site(options.folder)
    print(json.dumps(report.to_dict(), indent=1) if options.json else report.to_text())
    return 0 if report.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
