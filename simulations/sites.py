"""Which generated site gets which cases and which labels.

Every organ and every tumour occurs in the scans of every site, but each site labels only its own classes. Held-out
cases, in a folder of their own, carry the full truth and serve for scoring only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsm_core.config import PhantomConfig
from dsm_core.data.phantoms import (
    PHANTOM_CLASSES,
    PHANTOM_LESIONS,
    Scanner,
    ShapeLibrary,
    ShapeLibraryError,
    folder_digest,
    generate_case,
    read_shapes,
)
from simulations.site_folders import SiteFolder, write_case, write_datalist

RECIPE_VERSION = 3  # raise it whenever the same seed would give other voxels
LESION_SHARE = 0.7  # share of a site's patients that have a kind of tumour
WORKERS = 2

SITE_CLASSES: tuple[tuple[str, ...], ...] = (
    ("kidney", "kidney tumor", "aorta"),
    ("liver", "liver tumor", "stomach"),
    ("liver", "liver tumor", "spleen", "aorta"),
    ("pancreas", "pancreas tumor", "spleen", "vertebrae"),
)
RARE_CLASS = "kidney tumor"  # labelled at one site, however many there are
UNSEEN_CLASSES = ("spleen tumor",)

_SPACINGS_MM = ((3.0, 3.0, 5.0), (3.5, 3.5, 4.0), (4.0, 4.0, 3.0), (2.7, 2.7, 5.0))
_SHARPNESS = (0.6, -0.6, 0.1, 0.9)


class SitesError(ValueError):
    """Generated sites cannot be written as asked; the message says what was found and what to do."""


@dataclass(frozen=True)
class GeneratedSites:
    """Where generated sites lie.

    Attributes:
        root: the folder that holds them all.
        folders: site name -> its folder of training cases.
        held_out: site name -> its folder of held-out cases with the full truth.
        classes: site name -> the classes that the site labels.
    """

    root: Path
    folders: dict[str, Path]
    held_out: dict[str, Path]
    classes: dict[str, tuple[str, ...]]


def site_name(index: int) -> str:
    """site_a ... site_z, site_aa, site_ab ..."""
    letters, left = "", index + 1
    while left:
        left, letter = divmod(left - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"site_{letters}"


def plan_classes(sites: int) -> dict[str, tuple[str, ...]]:
    """The classes each site labels: a pattern of four, shared out over fewer sites or repeated over more.

    Raises:
        SitesError: less than one site.
    """
    if sites < 1:
        raise SitesError(f"sites wants at least 1, found {sites}")
    plan = {}
    for index in range(sites):
        parts = SITE_CLASSES[index::sites] if sites < len(SITE_CLASSES) else [SITE_CLASSES[index % len(SITE_CLASSES)]]
        names = dict.fromkeys(name for part in parts for name in part)
        plan[site_name(index)] = tuple(name for name in names if name != RARE_CLASS or index == 0)
    return plan


def generate_sites(
    root: Path,
    sites: int,
    phantom: PhantomConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
) -> GeneratedSites:
    """Write `root/site_a/...` and `root/eval/site_a/...`, or keep them when the same recipe made them.

    A patient depends on the seed, the site's place and the case's number, not on how many sites there are.

    Args:
        progress: called with (cases done, cases in all) after each case, from the calling thread.
        classes: what each site labels, instead of `plan_classes`; as many sites as asked for.

    Raises:
        SitesError: less than one site, `root` holds files that were not generated, or the tumour shapes asked for
            cannot be had.
    """
    root, plan = Path(root), plan_classes(sites) if classes is None else dict(classes)
    made = GeneratedSites(root, {site: root / site for site in plan}, {s: root / "eval" / s for s in plan}, plan)
    recipe = {"version": RECIPE_VERSION, "seed": seed, "sites": sites, "phantom": phantom_recipe(phantom)}
    if classes is not None:
        recipe["classes"] = {site: list(names) for site, names in plan.items()}
    if _is_made(root, recipe):
        return made
    library = _shapes(phantom)
    _write_recipe(root, recipe, is_complete=False)
    jobs = []
    for index, (site, own) in enumerate(plan.items()):
        training = SiteFolder(
            made.folders[site], index, own, _annotated(index, own, phantom.cases), f"Generated CT, {site}"
        )
        held_out = SiteFolder(
            made.held_out[site],
            index,
            PHANTOM_CLASSES,
            (PHANTOM_CLASSES,) * phantom.held_out,
            f"Generated CT, {site}, every class labelled, for scoring only",
        )
        for folder in (training, held_out):
            write_datalist(folder)
            jobs += [(folder, case, folder is held_out) for case in range(len(folder.annotated))]
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = [pool.submit(_make_case, *job, seed, phantom, library) for job in jobs]
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _write_recipe(root, recipe, is_complete=True)
    return made


def phantom_recipe(phantom: PhantomConfig) -> dict[str, Any]:
    """What decides the voxels of generated patients, as JSON; a folder of shapes counts by its content, not its name.

    Raises:
        SitesError: the folder of shapes cannot be read.
    """
    recipe: dict[str, Any] = json.loads(json.dumps(asdict(phantom)))
    if recipe["contrast"] == "portal":
        del recipe["contrast"]  # sites made before there was a choice stay what they were
    if recipe.pop("lesion_shapes") is not None:
        try:
            recipe["lesion_shapes"] = folder_digest(str(phantom.lesion_shapes))
        except ShapeLibraryError as error:
            raise SitesError(str(error)) from None
    return recipe


def _shapes(phantom: PhantomConfig) -> ShapeLibrary | None:
    try:
        return None if phantom.lesion_shapes is None else read_shapes(phantom.lesion_shapes)
    except ShapeLibraryError as error:
        raise SitesError(str(error)) from None


def site_scanner(index: int, seed: int) -> Scanner:
    """The scanner of a site; neighbours differ in spacing, kernel, noise and calibration."""
    rng = np.random.default_rng((seed, index, 1))
    return Scanner(
        spacing_mm=_SPACINGS_MM[index % len(_SPACINGS_MM)],
        noise_hu=rng.uniform(8, 15),
        sharpness=_SHARPNESS[index % len(_SHARPNESS)] + rng.uniform(-0.15, 0.15),
        shift_hu=rng.uniform(-10, 10),
        gain=rng.uniform(0.98, 1.02),
    )


def lesion_kinds(index: int, case: int, is_held_out: bool, seed: int) -> list[str]:
    """The kinds of tumour of one patient; the golden ratio spreads each evenly over the cases of a site."""
    start = np.random.default_rng((seed, index, 2 + is_held_out)).random(len(PHANTOM_LESIONS))
    return [kind for kind, s in zip(PHANTOM_LESIONS, start, strict=True) if (s + 0.618034 * case) % 1 < LESION_SHARE]


def _annotated(index: int, classes: tuple[str, ...], cases: int) -> tuple[tuple[str, ...], ...]:
    """At every second site each fourth case lacks the site's last class, as when a study ended early."""
    return tuple(classes[:-1] if index % 2 == 1 and case % 4 == 3 else classes for case in range(cases))


def _make_case(
    folder: SiteFolder, case: int, is_held_out: bool, seed: int, phantom: PhantomConfig, library: ShapeLibrary | None
) -> None:
    lesions = lesion_kinds(folder.index, case, is_held_out, seed)
    patient = (seed, folder.index, int(is_held_out), case)
    made = generate_case(patient, lesions, site_scanner(folder.index, seed), phantom.size_mm, library, phantom.contrast)
    write_case(folder, case, made)


def _write_recipe(root: Path, recipe: dict, is_complete: bool) -> None:
    (root / "recipe.json").write_text(json.dumps({**recipe, "complete": is_complete}, indent=1))


def _is_made(root: Path, recipe: dict) -> bool:
    """Whether the folder already holds this recipe; what an older or unfinished one left is removed."""
    root.mkdir(parents=True, exist_ok=True)
    note = root / "recipe.json"
    if not any(root.iterdir()):
        return False
    try:
        found = json.loads(note.read_text())
        stale = [root / site_name(index) for index in range(int(found["sites"]))]
    except (OSError, ValueError, KeyError, TypeError):
        raise SitesError(
            f"{root} holds files but no readable recipe.json, so they were not generated here; name an empty folder"
        ) from None
    if found == {**recipe, "complete": True}:
        return True
    for folder in (*stale, root / "eval"):
        shutil.rmtree(folder, ignore_errors=True)
    return False
