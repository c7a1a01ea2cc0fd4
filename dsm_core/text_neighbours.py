"""Can the classes of a text space be told apart? Nearest neighbours, pairs that are too close, hosts by text alone.

Axis legend: `n` classes, `E` text width.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsm_core.classes import ClassKind
from dsm_core.model.queries import host_weights
from dsm_core.text_space import TextSpace

# Of centred CLIP ViT-B/32 all four pairs of left and right organs lie above (0.87 to 0.97), and no other pair does:
# the next is the gallbladder and its tumour (0.82), then the liver and its tumour (0.73).
TOO_CLOSE = 0.85


@dataclass(frozen=True)
class Neighbours:
    """One class among the others.

    Attributes:
        nearest: classes with their cosines, the nearest first.
    """

    name: str
    kind: str
    nearest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TextHost:
    """The organ that a lesion's text is nearest to.

    Attributes:
        declared: its host as the site or the atlas says; None where none is said.
        organ: by text; None where the text is near no organ, so that the lesion is looked for anywhere.
        weight: of that organ, or of "anywhere", 0 to 1.
    """

    lesion: str
    declared: str | None
    organ: str | None
    weight: float

    @property
    def is_as_declared(self) -> bool:
        """Also where `kidney` is declared and the text is near the right one; True where nothing is declared."""
        return self.declared is None or f" {self.organ}".endswith(f" {self.declared}")


@dataclass(frozen=True)
class Overview:
    """What there is to know of a text space before it is trained on.

    Attributes:
        mean_cosine: over all pairs of different classes; about 0 after centring.
        too_close: pairs of classes and their cosine, above `threshold`; the closest first.
    """

    neighbours: tuple[Neighbours, ...]
    hosts: tuple[TextHost, ...]
    too_close: tuple[tuple[str, str, float], ...]
    mean_cosine: float
    threshold: float


def survey(space: TextSpace, count: int = 3, threshold: float = TOO_CLOSE) -> Overview:
    """Every class with its nearest neighbours, and what is to be warned of."""
    cosines = (space.vectors @ space.vectors.T).tolist()
    names = space.names
    neighbours = []
    for row, info in enumerate(space.classes):
        near = sorted(((names[other], value) for other, value in enumerate(cosines[row]) if other != row), key=_falling)
        neighbours.append(Neighbours(info.name, info.kind.value, tuple(near[:count])))
    pairs = [(names[i], names[j], cosines[i][j]) for i in range(len(names)) for j in range(i + 1, len(names))]
    close = sorted((pair for pair in pairs if pair[2] > threshold), key=lambda pair: -pair[2])
    mean = sum(value for *_, value in pairs) / len(pairs) if pairs else 0.0
    return Overview(tuple(neighbours), _hosts(space), tuple(close), mean, threshold)


def _hosts(space: TextSpace) -> tuple[TextHost, ...]:
    organs = [row for row, info in enumerate(space.classes) if info.kind is ClassKind.ORGAN]
    lesions = [row for row, info in enumerate(space.classes) if info.kind is ClassKind.LESION]
    weights = host_weights(space.vectors[lesions], space.vectors[organs])
    found = []
    for row, of_lesion in zip(lesions, weights.tolist(), strict=True):
        nearest = max(range(len(of_lesion)), key=of_lesion.__getitem__)
        organ = space.names[organs[nearest]] if nearest < len(organs) else None
        found.append(TextHost(space.names[row], space.classes[row].host, organ, of_lesion[nearest]))
    return tuple(found)


def _falling(pair: tuple[str, float]) -> float:
    return -pair[1]
