"""The site's command for its own data: `dsm-site check`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from strategies.deployment.command_line import Commands


def add_commands(commands: Commands) -> None:
    """Add `check`."""
    check = commands.add_parser(
        "check",
        help="every fault of a data folder, its label contract and its scans in summary",
        description="Open every scan of a data folder (MSD or nnU-Net layout). Exit code 1 where it has faults.",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="folder with dataset.json, imagesTr/ and labelsTr/")
    check.add_argument("--json", action="store_true", help="the report as JSON")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from client.site import check_site

    report = check_site(options.folder)
    print(json.dumps(report.to_dict(), indent=1) if options.json else report.to_text())
    return 0 if report.is_sound else 1
