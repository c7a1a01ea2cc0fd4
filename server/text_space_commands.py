"""The coordinator's commands for text spaces: `dsm-server text-space build` and `dsm-server text-space show`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from strategies.deployment.command_line import Commands

if TYPE_CHECKING:
    from dsm_core.config import TextConfig
    from dsm_core.text_bank import Bank
    from dsm_core.text_neighbours import Overview
    from dsm_core.text_space import TextSpace

_BUILD = """Encode classes and write the bank, which runs take with text.bank=FILE. Where no class is named, the whole
atlas is taken. KEY=VALUE as in a run: text.weights=FOLDER, text.model=NAME, text.detail=attributes; without weights the
bank is made of hashed words, and says so."""


def add_commands(commands: Commands) -> None:
    """Add `text-space`."""
    group = commands.add_parser(
        "text-space", help="encode the names of classes, and see whether they can be told apart"
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = actions.add_parser("build", help="write the bank of a list of classes", description=_BUILD)
    build.add_argument("file", type=Path, metavar="FILE.safetensors", help="bank to write")
    build.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="text.KEY=VALUE, as in a run")
    build.add_argument("--class", dest="names", action="append", default=[], metavar="NAME", help="repeat for several")
    build.add_argument(
        "--classes", action="append", default=[], type=Path, metavar="FILE", help="a name a line, or JSON"
    )
    build.add_argument(
        "--contracts", action="append", default=[], type=Path, metavar="FILE", help="consortium/contracts.json"
    )
    build.add_argument(
        "--data",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a site's folder, or one of sites' folders",
    )
    build.add_argument("--replace", action="store_true", help="write over a bank that is there")
    build.add_argument("--dry-run", action="store_true", help="encode and say what would be written; write nothing")
    build.set_defaults(run=_build)

    show = actions.add_parser(
        "show",
        help="nearest neighbours, hosts by text, classes too close to tell apart",
        description="Of a bank, or of the text space of a checkpoint or of a site.",
    )
    show.add_argument("file", type=Path, metavar="FILE.safetensors")
    show.add_argument("--neighbours", type=int, default=3, metavar="N", help="how many of each class (%(default)s)")
    show.add_argument("--threshold", type=float, metavar="COSINE", help="warn of pairs above it (0.85)")
    show.add_argument("--json", action="store_true", help="the same as JSON")
    show.set_defaults(run=_show)


def _build(options: argparse.Namespace) -> int:
    from dsm_core.text_building import centre_bank
    from dsm_core.text_encoders import load_encoder, make_bank
    from dsm_core.text_neighbours import survey
    from dsm_core.text_space import TextSpaceError
    from server.text_space_classes import gather_classes
    from strategies.deployment.errors import DeploymentError

    _check_place(options.file, options.replace)
    config = _text_config(options.keys)
    classes = gather_classes(options.names, options.classes, options.contracts, options.data)
    try:
        bank = make_bank(load_encoder(config), classes, config)
        overview = survey(centre_bank(bank, classes, bank.model))
        if not options.dry_run:
            bank.save(options.file)
    except TextSpaceError as error:
        raise DeploymentError(f"{error}") from error
    except OSError as error:
        raise DeploymentError(f"{options.file} cannot be written: {error.strerror}") from error
    print(_told_bank(bank, len(classes)))
    print(*_warnings(overview), sep="\n")
    print(
        f"dry run: would write {options.file}"
        if options.dry_run
        else f"{options.file}\nuse it: text.bank={options.file}"
    )
    return 0


def _show(options: argparse.Namespace) -> int:
    from dsm_core.text_neighbours import TOO_CLOSE, survey
    from dsm_core.text_space import TextSpaceError
    from strategies.deployment.errors import DeploymentError

    threshold = TOO_CLOSE if options.threshold is None else options.threshold
    if options.neighbours < 1 or not -1 <= threshold <= 1:
        raise DeploymentError(
            f"--neighbours wants 1 or more and --threshold a cosine, found {options.neighbours} and {threshold}"
        )
    try:
        space = _read(options.file)
        overview = survey(space, options.neighbours, threshold)
    except TextSpaceError as error:
        raise DeploymentError(f"{error}") from error
    facts = {"encoder": space.encoder, "width": space.width, "hash": space.hash}
    print(json.dumps({**facts, **_as_json(overview)}, indent=1) if options.json else _as_text(overview, facts))
    return 0


def _check_place(path: Path, may_replace: bool) -> None:
    from strategies.deployment.errors import DeploymentError

    if path.suffix != ".safetensors":
        raise DeploymentError(f"a bank is a file that ends in .safetensors, found {path.name}")
    if not path.parent.is_dir():
        raise DeploymentError(f"the folder {path.parent} does not exist; create it first")
    if path.is_dir() or (path.exists() and not may_replace):
        raise DeploymentError(f"{path} is there already; give another name, or --replace")


def _text_config(keys: list[str]) -> TextConfig:
    from dsm_core.config import ConfigError
    from dsm_core.config_words import compose_config
    from strategies.deployment.errors import DeploymentError

    if odd := [key for key in keys if not key.startswith("text.")]:
        raise DeploymentError(f"wanted text.KEY=VALUE, found {', '.join(odd)}")
    try:
        config = compose_config(keys).text
    except ConfigError as error:
        raise DeploymentError(f"{error}") from error
    if config.bank or config.encoder == "bank":
        raise DeploymentError("text.bank is a bank already; give text.weights, or nothing for hashed words")
    return config


def _read(path: Path) -> TextSpace:
    """A bank over all its classes, or a text space as checkpoints and sites hold it."""
    from dsm_core.text_bank import read_bank
    from dsm_core.text_building import centre_bank
    from dsm_core.text_space import TextSpace, TextSpaceError

    try:
        bank = read_bank(path)
    except TextSpaceError as error:
        if path.is_file() and b'"text_space"' in path.read_bytes()[: 1 << 20]:
            return TextSpace.load(path)
        raise error
    return centre_bank(bank, bank.classes, bank.model)


def _told_bank(bank: Bank, asked: int) -> str:
    lines = [
        f"{len(bank.classes)} classes: {asked} asked for, the rest of the atlas beside them",
        f"made by {bank.model}; of each class: {bank.recipe.detail}",
        f"width {bank.embeddings.shape[1]}, hash {bank.hash}",
    ]
    return "\n".join(lines)


def _as_json(overview: Overview) -> dict:
    return {
        "mean_cosine": overview.mean_cosine,
        "threshold": overview.threshold,
        "classes": {each.name: {"kind": each.kind, "nearest": dict(each.nearest)} for each in overview.neighbours},
        "hosts": {
            each.lesion: {"declared": each.declared, "by_text": each.organ, "weight": each.weight}
            for each in overview.hosts
        },
        "too_close": [{"classes": [one, other], "cosine": value} for one, other, value in overview.too_close],
    }


def _as_text(overview: Overview, facts: dict) -> str:
    from strategies.deployment.tables import table

    near = [
        (each.name, each.kind, ", ".join(f"{name} {value:.2f}" for name, value in each.nearest))
        for each in overview.neighbours
    ]
    hosts = [
        (each.lesion, each.declared or "-", f"{each.organ or 'none: anywhere'} ({each.weight:.2f})")
        for each in overview.hosts
    ]
    parts = [
        f"made by {facts['encoder']}; width {facts['width']}, hash {facts['hash'][:12]}",
        f"{len(near)} classes, mean cosine of two {overview.mean_cosine:.3f}",
        *table([("class", "kind", "nearest (cosine)"), *near]),
        *(table([("lesion", "host declared", "host by text (weight)"), *hosts]) if hosts else ["no lesion"]),
        *_warnings(overview),
    ]
    return "\n".join(parts)


def _warnings(overview: Overview) -> list[str]:
    lines = [
        f"warning: {one!r} and {other!r} are too close to be told apart by text (cosine {value:.2f}, above "
        f"{overview.threshold:g}); only sites that label both can separate them"
        for one, other, value in overview.too_close
    ]
    lines += [
        f"warning: the text of {each.lesion!r} is near {each.organ or 'no organ'}, its declared host is "
        f"{each.declared}; where that is no organ of the model, the text decides"
        for each in overview.hosts
        if not each.is_as_declared
    ]
    return lines or [f"no two classes are closer than {overview.threshold:g}, and every host is found by text"]
