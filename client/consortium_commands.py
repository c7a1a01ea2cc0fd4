"""The site's commands that ask the coordinator: `bank`, `enrol`, `encode`, `watch`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from client.connection import add_connection
from strategies.deployment.command_line import Commands

if TYPE_CHECKING:
    from strategies.proto.consortium_pb2 import Progress


def add_commands(commands: Commands) -> None:
    """Add `bank`, `enrol`, `encode` and `watch`."""

    def add(name: str, help: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        add_connection(command)
        command.set_defaults(run=lambda options: named_failures(name, run, options))
        return command

    add("bank", "fetch the consortium's text space", _bank)
    enrol = add("enrol", "send this site's label contract, and learn whether it fits the other sites'", _enrol)
    enrol.add_argument("--data", type=Path, metavar="DIR", help="the data folder, instead of the one in site.yaml")
    enrol.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    encode = add("encode", "have phrases encoded by the coordinator, and keep their vectors for dsm-predict", _encode)
    encode.add_argument("phrases", nargs="+", metavar="PHRASE")
    encode.add_argument("--checkpoint", type=Path, metavar="DIR", help="its text space, instead of the one held")
    encode.add_argument("--phrase-cache", type=Path, metavar="DIR", help="where dsm-predict looks for phrases")
    watch = add("watch", "the rounds of a run, as they are done", _watch)
    watch.add_argument("run_name", metavar="RUN", help="name of the run at the coordinator")
    watch.add_argument("--no-follow", action="store_true", help="tell what is known now, and end")


def named_failures(command: str, run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """0, or 1 with the reason in one line on stderr."""
    from client.reach import Unreachable
    from client.retries import ConsortiumError
    from dsm_core.checkpoint import CheckpointError
    from dsm_core.text_space import TextSpaceError
    from strategies.audit import AuditError
    from strategies.tls import TlsError

    try:
        run(options)
    except (ConsortiumError, Unreachable, TlsError, TextSpaceError, CheckpointError, AuditError, OSError) as error:
        print(f"dsm-site {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _bank(options: argparse.Namespace) -> None:
    from client.errands import Errands

    with Errands.open(options) as errands:
        space = errands.fetch_bank()
    print(f"text space {space.hash[:12]}: {len(space.names)} classes, made by {space.encoder}")


def _enrol(options: argparse.Namespace) -> None:
    from client.errands import Errands
    from client.membership import load_site
    from client.retries import ConsortiumError
    from client.site import check_site
    from client.site_file import read_site_file

    data = options.data or read_site_file(load_site(options.folder).settings).data
    report = check_site(data)
    if report.contract is None:
        count = len(report.inspection.faults)
        raise ConsortiumError(f"{count} fault(s) in the data folder; see them with `dsm-site check {data}`")
    with Errands.open(options) as errands:
        contract = errands.own(report.contract)
        print(json.dumps(contract.to_dict(), indent=1) if options.dry_run else f"enrolling site {contract.site!r}")
        if options.dry_run:
            return
        reply = errands.enrol(contract)
    if not reply.is_accepted:
        raise ConsortiumError("refused: " + "; ".join(f"({at}) {each}" for at, each in enumerate(reply.reasons, 1)))
    print(f"accepted; enrolled now: {', '.join(reply.sites)}")


def _encode(options: argparse.Namespace) -> None:
    from client.errands import Errands
    from dsm_core.checkpoint import TEXT
    from dsm_core.phrase_cache import cache_folder
    from dsm_core.text_space import TextSpace

    folder = options.phrase_cache or cache_folder()
    with Errands.open(options) as errands:
        space = TextSpace.load(options.checkpoint / TEXT) if options.checkpoint else errands.held_or_fetched_bank()
        asked = errands.learn(space, options.phrases, folder)
    for phrase in options.phrases:
        print(f"{phrase}: {'encoded by the coordinator' if phrase in asked else 'known here already'}")


def _watch(options: argparse.Namespace) -> None:
    from client.errands import Errands

    with Errands.open(options) as errands:
        for progress in errands.client.watch(options.run_name, follow=not options.no_follow):
            print(_told(progress), flush=True)


def _told(progress: Progress) -> str:
    """A line such as `round 7 (organs): loss 0.4112, 2 sites (a, b); c: no usable update`."""
    stage = f" ({progress.stage})" if progress.stage else ""
    if progress.is_done:
        absent = [
            f"{site}: {progress.reasons.get(site, 'no usable update')}"
            for site in (*progress.refused, *progress.failed)
        ]
        loss = f"loss {progress.loss:.4f}, " if progress.HasField("loss") else ""
        told = f"round {progress.round}{stage}: {loss}{len(progress.sites)} sites ({', '.join(progress.sites)})"
        return "; ".join([told, *absent])
    told = f"round {progress.round} of {progress.rounds}{stage}, {progress.phase}"
    awaited = f": waiting for {', '.join(progress.waiting_for)}" if progress.waiting_for else ""
    return told + awaited + "; the run gives no sign of life" * progress.is_silent
