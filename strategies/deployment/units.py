"""How are the programs run by something else than our supervisor? Printed as commands, or as systemd units."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, StrictUndefined

from strategies.deployment.processes import Place, Program

FORMS = ("commands", "systemd")


def render(form: str, title: str, place: Place, programs: Sequence[Program]) -> str:
    """Exact command lines and environment of some programs.

    Args:
        form: one of FORMS. title: of the units.
    """
    blocks = [_command(program) for program in programs] if form == "commands" else _units(title, place, programs)
    return "\n\n".join(blocks)


def _command(program: Program) -> str:
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in program.environment.items())
    return f"# {program.name}\n" + (f"env {variables} \\\n  " if variables else "") + shlex.join(program.command)


def _units(title: str, place: Place, programs: Sequence[Program]) -> list[str]:
    text = resources.files("strategies.deployment").joinpath("templates", "service.j2").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    prefix = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    units, after = [], ""
    for program in programs:
        name = f"{prefix}-{program.name}.service"
        unit = template.render(
            title=title,
            program=program,
            command=" ".join(_escaped(word) for word in program.command),
            environment={name: value.replace("%", "%%") for name, value in program.environment.items()},
            user=getpass.getuser(),
            folder=place.folder,
            after=after,
        )
        units.append(f"# /etc/systemd/system/{name}\n{unit.rstrip()}")
        after = name
    return units


def _escaped(word: str) -> str:
    # systemd.service(5): quotes as in C, % and $ are doubled.
    quoted = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{quoted}"' if set(quoted) & set(" \t;'\"") or not quoted else quoted
