"""In which organ is a lesion looked for, and how is that known? Said in words, and applied as a margin around it.

Axis legend: `Q` queries, `X Y Z` voxels of the working grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from dsm_core.classes import ClassInfo, ClassKind
from dsm_core.model import DSM, QuerySet, organs_meant
from dsm_core.text_space import TextSpace

_WORTH_NAMING = 0.1  # weight from which an organ that was guessed from a phrase's words is named


class HostError(ValueError):
    """A host organ that the model cannot look in; the message names those that it can."""


def check_host(host: str, model: DSM, text: TextSpace) -> None:
    """Return silently if the model knows this organ.

    Raises:
        HostError: it was trained on no organ of this name.
    """
    queries = model.query_set([], text)
    known = queries.names[: queries.context]
    if not organs_meant(host, known):
        raise HostError(f"host {host!r} is no organ that this model was trained on; wanted one of {', '.join(known)}")


def places_searched(queries: QuerySet) -> dict[str, str]:
    """Of each lesion asked for, where it is looked for and how that is known."""
    organs = queries.names[: queries.context]
    found = {}
    for lesion, weights in enumerate(queries.host.tolist()):
        *within, anywhere = weights
        named = [(name, weight) for name, weight in zip(organs, within, strict=True) if weight >= _WORTH_NAMING]
        if anywhere >= 0.5 or not named:
            said = "host unknown: looked for in the whole body (--host ORGAN names one)"
        elif all(weight == 1 for _, weight in named):
            said = f"host {' and '.join(name for name, _ in named)}"
        else:
            said = f"host by its words: {', '.join(f'{name} ({weight:.2f})' for name, weight in named)}"
        found[queries.names[queries.organs + lesion]] = said
    return found


def host_organs(classes: Sequence[ClassInfo], text: TextSpace) -> list[list[str]]:
    """For each class, the organs of the text space that are its host ("kidney": also the right and left one)."""
    organs = [info.name for info in text.classes if info.kind is ClassKind.ORGAN]
    return [[organs[place] for place in organs_meant(info.host, organs)] for info in classes]


def keep_near_hosts(
    probabilities: Tensor,
    hosts: Sequence[Sequence[str]],
    threshold: float,
    margin_mm: float,
    spacing_mm: Sequence[float],
) -> Tensor:
    """The probabilities of the classes, zero further than the margin from their host organ, and where it is not found.

    Args:
        probabilities: (Q, X, Y, Z), the classes first, then the organs of `hosts` one after the other; written to.
        hosts: the host organs of each class; a class without any is kept everywhere.
    """
    following = len(hosts)
    for row, names in enumerate(hosts):
        if not names:
            continue
        host = (probabilities[following : following + len(names)] >= threshold).any(0).cpu().numpy()
        following += len(names)
        if host.any():
            away_mm = distance_transform_edt(~host, sampling=list(spacing_mm))
            probabilities[row] *= torch.as_tensor(away_mm <= margin_mm).to(probabilities.device)
        else:
            probabilities[row] = 0
    return probabilities[: len(hosts)]
