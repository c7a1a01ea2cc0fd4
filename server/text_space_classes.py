"""Which classes does a text space get: of a list, of enrolled contracts, of data folders, or of the whole atlas?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsm_core.classes import ATLAS, ClassInfo, describe_class
from dsm_core.data import (
    ContractError,
    DatalistError,
    LabelContract,
    contract_classes,
    find_conflicts,
    label_contract,
    read_datalist,
    site_folders,
)
from strategies.deployment.errors import DeploymentError


def classes_of_list(path: Path) -> tuple[ClassInfo, ...]:
    """The classes of a file: a name a line, or JSON, a list of names or name -> {"kind", "host", "synonyms"}.

    Raises:
        DeploymentError: the file is missing, holds no class, or holds what is no class.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
        named = content.items() if isinstance(content, dict) else ((name, {}) for name in content)
        return _unique(
            [_class(name, facts) for name, facts in named if name.strip() and not name.startswith("#")], path
        )
    except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise DeploymentError(
            f"{path} is no list of classes ({error}); wanted a name a line, a JSON list of names, or a JSON object "
            'name -> {"kind": "organ" or "lesion", "host": ORGAN, "synonyms": [PHRASE, ...]}'
        ) from error


def classes_of_contracts(path: Path) -> tuple[ClassInfo, ...]:
    """The classes of label contracts, such as `contracts.json` of a consortium.

    Raises:
        DeploymentError: the file cannot be read, or its contracts contradict each other; every conflict is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        contracts = [LabelContract.from_dict(each) for each in (content if isinstance(content, list) else [content])]
    except (OSError, ValueError, ContractError) as error:
        raise DeploymentError(f"{path} holds no label contracts: {error}") from error
    return _agreed(contracts, path)


def classes_of_data(root: Path) -> tuple[ClassInfo, ...]:
    """The classes that the sites label whose folders lie in a folder; or of one site's folder.

    Raises:
        DeploymentError: no site's folder, a datalist with faults, or datalists that contradict each other.
    """
    try:
        folders = [root] if (root / "dataset.json").is_file() else site_folders(root)
        contracts = [label_contract(read_datalist(folder)) for folder in folders]
    except DatalistError as error:
        raise DeploymentError(f"{root}: {error.details()}") from error
    except OSError as error:
        raise DeploymentError(f"{root} cannot be read: {error.strerror}") from error
    return _agreed(contracts, root)


def gather_classes(
    names: Sequence[str], lists: Sequence[Path], contracts: Sequence[Path], data: Sequence[Path]
) -> tuple[ClassInfo, ...]:
    """The classes of all sources, sorted by name; the atlas where there is none.

    Raises:
        DeploymentError: see the other functions; or two sources say different things of one class.
    """
    if not (names or lists or contracts or data):
        return tuple(ATLAS[name] for name in sorted(ATLAS))
    sources = [
        *((f"--class {name}", (_class(name, {}),)) for name in names),
        *((f"{path}", classes_of_list(path)) for path in lists),
        *((f"{path}", classes_of_contracts(path)) for path in contracts),
        *((f"{path}", classes_of_data(path)) for path in data),
    ]
    found: dict[str, tuple[ClassInfo, str]] = {}
    for source, infos in sources:
        for info in infos:
            before, where = found.setdefault(info.name, (info, source))
            if (before.kind, before.host) != (info.kind, info.host):
                raise DeploymentError(
                    f"{info.name!r} is {_told(before)} in {where} and {_told(info)} in {source}; correct one of them"
                )
    return tuple(found[name][0] for name in sorted(found))


def _class(name: str, facts: dict) -> ClassInfo:
    info = describe_class(name, facts.get("kind"), facts.get("host"))
    synonyms = tuple(str(each) for each in facts.get("synonyms", info.synonyms))
    if odd := sorted(set(facts) - {"kind", "host", "synonyms"}):
        raise ValueError(f"{name!r} has {', '.join(odd)}")
    return ClassInfo(info.name, info.kind, info.host, synonyms)


def _agreed(contracts: Sequence[LabelContract], source: Path) -> tuple[ClassInfo, ...]:
    if conflicts := find_conflicts(contracts):
        raise DeploymentError(f"{source}: {'; '.join(conflicts)}")
    return contract_classes(contracts)


def _unique(infos: Iterable[ClassInfo], path: Path) -> tuple[ClassInfo, ...]:
    infos = tuple(infos)
    names = [info.name for info in infos]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(map(repr, doubled))} twice")
    if not infos:
        raise ValueError("no class")
    return infos


def _told(info: ClassInfo) -> str:
    return f"{info.kind.value} hosted by {info.host}" if info.host else info.kind.value
