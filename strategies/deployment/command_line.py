"""How `dsm-server` and `dsm-site` become commands: modules add subcommands, faults become one message and a code."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from strategies.deployment.errors import DeploymentError

Commands = argparse._SubParsersAction  # what add_subparsers() returns; argparse gives it no public name


class CommandGroup(Protocol):
    """A module of subcommands. Each sets `run`, a function from its options to an exit code.

    Options hold `words` besides, the command line as it was typed, for commands that go on in the background.

    Heavy packages are imported inside `run`, so that `--help` and a mistyped word answer at once.
    """

    def add_commands(self, commands: Commands) -> None: ...


def run_command(program: str, description: str, groups: Iterable[CommandGroup], words: Sequence[str] | None) -> int:
    """Exit code of one command line: 0 done, 1 refused or failed with the reason printed, 2 mistyped; 141 cut off.

    Args:
        words: the command line without its program; `sys.argv` when None.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in groups:
        group.add_commands(commands)
    options = parser.parse_args(words)
    options.words = list(sys.argv[1:] if words is None else words)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 128 + signal.SIGPIPE
    except DeploymentError as error:
        print(f"{program} {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program} {options.command}: interrupted", file=sys.stderr)
        return 130


def _reader_left() -> bool:
    """Whether nobody reads what is printed, such as `head` that has seen enough; then it goes nowhere from here on."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):  # an error, the only event that is told unasked
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    return True


def add_folder(command: argparse.ArgumentParser, default: str) -> None:
    """Add `--folder`, where a consortium or a site keeps what is its own."""
    command.add_argument(
        "--folder", type=Path, default=Path(default), metavar="DIR", help="where it is kept (default ./%(default)s)"
    )


def port(text: str) -> int:
    """A TCP port as typed, for argparse."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; wanted 1 to 65535")
    return int(text)
