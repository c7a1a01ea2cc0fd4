"""What does a `dataset.json` say? Reads the MSD and nnU-Net dialects into one form, gathering every fault.

MSD: Antonelli et al. 2022, arXiv:2106.05735. nnU-Net: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dsm_core.classes import ClassInfo, describe_class, normalise_name
from dsm_core.data.faults import Fault

JSON_NAME = "dataset.json"
_ENDINGS = (".nii.gz", ".nii")
_OTHER_MODALITIES = {
    "mr",
    "mri",
    "t1",
    "t1w",
    "t1gd",
    "t1ce",
    "t2",
    "t2w",
    "flair",
    "adc",
    "dwi",
    "pet",
    "us",
    "ultrasound",
}


@dataclass
class Labels:
    """The classes of a folder: the value painted for each, and every value that belongs to it."""

    values: dict[str, int] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    classes: dict[str, ClassInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One training case as listed, paths relative to the folder; what the entry does not say is None."""

    image: str
    label: str | None
    annotated: Any = None
    patient: Any = None


def read_json(root: Path) -> tuple[dict[str, Any], list[Fault]]:
    """The content of `dataset.json`, empty where it cannot be read, and what is wrong with it."""
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(items)

    try:
        content = json.loads((root / JSON_NAME).read_text(encoding="utf-8-sig"), object_pairs_hook=pairs)
    except OSError:
        found = "no readable file" if root.is_dir() else "no such folder"
        return {}, [Fault(JSON_NAME, found, "a dataset.json beside imagesTr/ and labelsTr/")]
    except (ValueError, RecursionError) as error:
        return {}, [Fault(JSON_NAME, f"invalid JSON ({error})", "valid JSON in UTF-8")]
    if not isinstance(content, dict):
        return {}, [Fault(JSON_NAME, f"a JSON {type(content).__name__}", "a JSON object with `labels` and `training`")]
    faults = [Fault(JSON_NAME, f"the key {key!r} more than once", "every key once") for key in repeated]
    return content, faults + _modality_faults(content)


def _modality_faults(content: dict[str, Any]) -> list[Fault]:
    faults = []
    channels = content.get("channel_names", content.get("modality"))
    if isinstance(channels, str):
        channels = {"0": channels}
    if channels is not None and not isinstance(channels, dict):
        faults.append(Fault(JSON_NAME, f"channels {channels!r}", 'channel_names or modality such as {"0": "CT"}'))
    elif channels:
        names = [str(name) for name in channels.values()]
        if len(names) > 1:
            faults.append(Fault(JSON_NAME, f"{len(names)} channels {names}", "one channel, CT"))
        elif _OTHER_MODALITIES & set(normalise_name(names[0]).replace("-", " ").split()):
            faults.append(Fault(JSON_NAME, f"modality {names[0]!r}", "CT scans in Hounsfield units"))
    ending = content.get("file_ending", ".nii.gz")
    if ending not in _ENDINGS:
        faults.append(Fault(JSON_NAME, f"file_ending {ending!r}", f"one of {', '.join(_ENDINGS)}"))
    return faults


def read_labels(content: dict[str, Any]) -> tuple[Labels, list[Fault]]:
    """Classes of `labels` in either dialect, with nnU-Net regions (lists of values) and the optional `classes`."""
    faults: list[Fault] = []
    labels, listed = Labels(), content.get("labels")
    if not isinstance(listed, dict) or not listed:
        found = "no `labels`" if listed is None else f"labels {listed!r}"
        return labels, [Fault(JSON_NAME, found, 'labels such as {"background": 0, "liver": 1}')]
    order = content.get("regions_class_order")
    has_regions = any(isinstance(value, list) for value in listed.values())
    painted = _region_values(listed, order, faults) if has_regions else {}
    for key, value in listed.items():
        is_msd = isinstance(value, str) and str(key).strip().isdigit()
        name, number = (normalise_name(value), int(key)) if is_msd else (normalise_name(key), value)
        region = number if isinstance(number, list) else [number]
        said = f"label {key!r}: {value!r}"
        if not name or not region or not all(type(v) is int and 0 <= v < 2**15 for v in region):
            faults.append(Fault(JSON_NAME, said, "a class name and mask values from 0 to 32767"))
        elif (name == "background") != (region == [0]):
            faults.append(Fault(JSON_NAME, said, "value 0 for background and for nothing else"))
        elif name == "background":
            continue
        elif name == "ignore":
            faults.append(Fault(JSON_NAME, said, "cases that say what they annotate by `annotated`, no `ignore` label"))
        elif name in labels.values:
            faults.append(
                Fault(JSON_NAME, f"the class {name!r} more than once", "every class name once (case ignored)")
            )
        elif (own := painted.get(key, region[0])) in labels.values.values() and (painted or not has_regions):
            faults.append(Fault(JSON_NAME, f"{said}, whose value another class has", "a mask value of its own a class"))
        else:
            labels.values[name], labels.regions[name] = own, tuple(sorted({own, *region}))
    if not labels.values and not faults:
        faults.append(Fault(JSON_NAME, "labels without any class but background", "at least one class in `labels`"))
    faults += _describe(labels, content.get("classes", {}))
    return labels, faults


def _region_values(listed: dict[str, Any], order: Any, faults: list[Fault]) -> dict[str, int]:
    foreground = [key for key, value in listed.items() if normalise_name(key) != "background" and value != 0]
    if not isinstance(order, list) or len(order) != len(foreground) or not all(type(v) is int for v in order):
        found = f"regions_class_order {order!r} for {len(foreground)} region labels"
        faults.append(Fault(JSON_NAME, found, "regions_class_order with one mask value a class, as nnU-Net asks"))
        return {}
    return dict(zip(foreground, order, strict=True))


def _describe(labels: Labels, declared: Any) -> list[Fault]:
    if not isinstance(declared, dict) or not all(isinstance(value, dict) for value in declared.values()):
        return [Fault(JSON_NAME, f"classes {declared!r}", 'classes such as {"liver tumor": {"kind": "lesion"}}')]
    faults = []
    said = {normalise_name(name): value for name, value in declared.items()}
    for name in sorted(set(said) - set(labels.values)):
        faults.append(Fault(JSON_NAME, f"`classes` describes {name!r}", "only classes that `labels` names"))
    for name in labels.values:
        kind, host = said.get(name, {}).get("kind"), said.get(name, {}).get("host")
        try:
            labels.classes[name] = info = describe_class(name, kind, host)
            if host and info.host == name:
                raise ValueError("a class cannot host itself")
            if host and info.host is None:
                raise ValueError("an organ has no host")
        except (ValueError, AttributeError) as error:
            wanted = "kind `organ` or `lesion`, and for a lesion the name of another class as host"
            faults.append(Fault(JSON_NAME, f"class {name!r} with kind {kind!r} and host {host!r} ({error})", wanted))
    return faults


def read_entries(root: Path, content: dict[str, Any]) -> tuple[list[Entry], list[Fault]]:
    """Training cases of `training` (MSD), else `dataset` (nnU-Net 2), else imagesTr/ and labelsTr/ paired by name."""
    listed = content.get("training")
    if listed is None and isinstance(content.get("dataset"), dict):
        listed = [
            {"image": (case.get("images") or [None])[0], **{k: case.get(k) for k in ("label", "annotated", "patient")}}
            for case in content["dataset"].values()
            if isinstance(case, dict)
        ]
    if listed is None:
        return _pair_files(root)
    if not isinstance(listed, list):
        return [], [Fault(JSON_NAME, f"training {type(listed).__name__}", "a list of {image, label}")]
    entries, faults = [], []
    for number, item in enumerate(listed):
        item = {"image": item} if isinstance(item, str) else item
        paths = [item.get("image"), item.get("label") or ""] if isinstance(item, dict) else [None]
        if not all(isinstance(path, str) for path in paths) or not paths[0]:
            faults.append(
                Fault(JSON_NAME, f"training entry {number}: {item!r}", "entries with an `image` and a `label`")
            )
        else:
            image, label = (str(path).removeprefix("./") for path in paths)
            entries.append(Entry(image, label or None, item.get("annotated"), item.get("patient")))
    return entries, faults


def _pair_files(root: Path) -> tuple[list[Entry], list[Fault]]:
    images = {case_name(path): path for path in scan_files(root, "imagesTr")}
    labels = {case_name(path): path for path in scan_files(root, "labelsTr")}
    entries = [Entry(path, labels.get(name)) for name, path in images.items()]
    lone = sorted(set(labels) - set(images))
    return entries, [Fault(labels[name], "a label without an image", "its image in imagesTr/") for name in lone]


def scan_files(root: Path, folder: str) -> list[str]:
    """NIfTI files of a sub-folder, sorted, relative to the root; files that start with a dot are left out."""
    found = sorted((root / folder).glob("*")) if (root / folder).is_dir() else []
    return [f"{folder}/{path.name}" for path in found if path.name.endswith(_ENDINGS) and not path.name.startswith(".")]


def case_name(path: str) -> str:
    """File name without folder, ending and nnU-Net's channel suffix `_0000`."""
    name = PurePosixPath(path).name
    for ending in _ENDINGS:
        if name.endswith(ending):
            name = name[: -len(ending)]
            break
    return name.removesuffix("_0000")
