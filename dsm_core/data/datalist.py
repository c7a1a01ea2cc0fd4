"""Which cases does a site hold, and which classes did it annotate in each? Reads the folder of a site."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dsm_core.classes import ClassInfo, ClassKind, normalise_name
from dsm_core.data.faults import DatalistError, Fault
from dsm_core.data.layouts import JSON_NAME, Entry, Labels, case_name, read_entries, read_json, read_labels


@dataclass(frozen=True)
class Case:
    """One patient's scan. `annotated` names the classes that are known in `label`; all others are unknown there.

    `patient` tells which scans are of one patient; None: of a patient with this scan only.
    """

    name: str
    image: Path
    label: Path | None
    annotated: tuple[str, ...]
    patient: str | None = None


@dataclass(frozen=True)
class Datalist:
    """A site's cases and classes.

    Attributes:
        values: class name -> value painted in the label maps; background is not a class.
        regions: class name -> every value that belongs to it (more than one for nnU-Net region labels).
    """

    site: str
    root: Path
    values: dict[str, int]
    classes: dict[str, ClassInfo]
    cases: tuple[Case, ...]
    regions: dict[str, tuple[int, ...]]

    def evidence(self) -> dict[str, int]:
        """Number of cases that annotate each class, classes sorted by name."""
        return {name: sum(name in case.annotated for case in self.cases) for name in sorted(self.values)}

    @property
    def labelled_classes(self) -> tuple[str, ...]:
        """Classes that at least one case annotates, sorted."""
        return tuple(name for name, count in self.evidence().items() if count)

    @property
    def annotated_cases(self) -> tuple[Case, ...]:
        """Cases that can be learned from."""
        return tuple(case for case in self.cases if case.annotated)

    def mask_values(self, name: str) -> tuple[int, ...]:
        """Values that make the mask of a class; an organ's mask holds its lesions (a lesion in the liver is liver)."""
        held = set(self.regions[name])
        if self.classes[name].kind is ClassKind.ORGAN:
            held.update(v for other, info in self.classes.items() if info.host == name for v in self.regions[other])
        return tuple(sorted(held))

    def subset(self, case_names: Collection[str]) -> Datalist:
        """The same site with only the named cases, in their old order.

        Raises:
            KeyError: a name is not a case of this site.
        """
        wanted = set(case_names)
        if missing := wanted - {case.name for case in self.cases}:
            raise KeyError(f"{len(missing)} of {len(wanted)} cases are not at site {self.site}")
        return replace(self, cases=tuple(case for case in self.cases if case.name in wanted))


def read_datalist(root: Path | str, site: str | None = None) -> Datalist:
    """The datalist of a site's folder; opens no scan (`check_folder` does).

    Raises:
        DatalistError: with every fault of `dataset.json` and every missing file.
    """
    datalist, faults = gather_datalist(Path(root), site)
    if faults:
        raise DatalistError(datalist.site, faults)
    return datalist


def gather_datalist(root: Path, site: str | None = None) -> tuple[Datalist, list[Fault]]:
    """What can be read of a site's folder, and every fault; only a datalist without faults may be used to train."""
    content, faults = read_json(root)
    labels, label_faults = read_labels(content) if content else (Labels(), [])
    entries, entry_faults = read_entries(root, content) if content else ([], [])
    faults += label_faults + entry_faults
    if not content and not faults:
        faults.append(Fault(JSON_NAME, "an empty object", "a JSON object with `labels` and `training`"))
    cases: dict[str, Case] = {}
    for entry in entries:
        case, found = _read_case(root, entry, tuple(sorted(labels.values)), check_names=not label_faults)
        faults += found
        if case and case.name in cases:
            faults.append(Fault(entry.image, "a case listed twice", "every case once, by its file name"))
        elif case:
            cases[case.name] = case
    claims_annotation = any(entry.label and entry.annotated != [] for entry in entries)
    if content and not entry_faults and not claims_annotation:
        found_cases = f"{len(entries)} cases, none of them annotated"
        faults.append(Fault(JSON_NAME, found_cases, "at least one case with a label map and an annotated class"))
    # The name leaves the site: a link is called what the site calls it, not what it points to.
    name = site or Path(os.path.abspath(root)).name
    return Datalist(name, root, labels.values, labels.classes, tuple(cases.values()), labels.regions), faults


def _read_case(root: Path, entry: Entry, known: tuple[str, ...], check_names: bool) -> tuple[Case | None, list[Fault]]:
    faults: list[Fault] = []
    image = _locate(root, entry.image, "the image", faults)
    label = _locate(root, entry.label, "the label map", faults) if entry.label else None
    annotated = known if entry.label else ()
    if entry.annotated is not None:
        if not isinstance(entry.annotated, list) or not all(isinstance(name, str) for name in entry.annotated):
            faults.append(Fault(entry.image, f"annotated {entry.annotated!r}", "`annotated` as a list of class names"))
        else:
            named = {normalise_name(name) for name in entry.annotated}
            annotated = tuple(sorted(named & set(known)))
            if check_names and (unknown := sorted(named - set(known))):
                faults.append(
                    Fault(entry.image, f"annotated {unknown}", "`annotated` with classes that `labels` names")
                )
            if annotated and not entry.label:
                faults.append(Fault(entry.image, "annotated classes without a label map", "a `label` for this case"))
    if not isinstance(entry.patient, str | None):
        faults.append(Fault(entry.image, f"patient {entry.patient!r}", "`patient` as text, equal for all their scans"))
    patient = entry.patient if isinstance(entry.patient, str) else None
    return Case(case_name(image.name), image, label, annotated, patient) if image else None, faults


def _locate(root: Path, listed: str, what: str, faults: list[Fault]) -> Path | None:
    relative = os.path.normpath(listed.replace("\\", "/"))
    if os.path.isabs(relative) or relative.split("/")[0] == "..":
        faults.append(Fault(listed, f"{what} outside the site's folder", "paths inside the folder of dataset.json"))
        return None
    path = root / relative
    stem = case_name(relative)
    # nnU-Net 1 lists `case.nii.gz` for the file `case_0000.nii.gz`.
    suffixed = path.with_name(path.name.replace(stem, f"{stem}_0000", 1))
    for candidate in (path, suffixed) if what == "the image" else (path,):
        if candidate.is_file():
            return candidate
    faults.append(Fault(listed, "no such file", f"{what} that dataset.json lists"))
    return None


def site_folders(root: Path | str) -> list[Path]:
    """Sub-folders that hold a `dataset.json`, sorted by name; `eval` is kept apart for scoring."""
    root = Path(root)
    found = root.iterdir() if root.is_dir() else []
    return sorted(path for path in found if path.name != "eval" and (path / JSON_NAME).is_file())


def split_held_out(datalist: Datalist, share: float, seed: int) -> tuple[Datalist, Datalist]:
    """Training and held-out cases, by the seed alone; every class keeps at least one training case.

    Args:
        share: share of the annotated cases to hold out, 0 <= share < 1; at least one case where share > 0 and
            the classes allow it.

    Raises:
        ValueError: the share is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"the held-out share wants a number in [0, 1), found {share}")
    left = datalist.evidence()
    order = sorted(datalist.annotated_cases, key=lambda case: case.name)
    np.random.default_rng(seed).shuffle(order)  # type: ignore[arg-type]
    wanted = max(1, round(share * len(order))) if share else 0
    held: set[str] = set()
    for case in order:
        if len(held) < wanted and all(left[name] > 1 for name in case.annotated):
            held.add(case.name)
            for name in case.annotated:
                left[name] -= 1
    return datalist.subset({case.name for case in datalist.cases} - held), datalist.subset(held)
