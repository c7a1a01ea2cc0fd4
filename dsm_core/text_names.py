"""Which class does a phrase name: by its name, by a synonym, or by the same words in another order and form?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsm_core.classes import ATLAS, ClassInfo, ClassKind, normalise_name
from dsm_core.hashed_words import TextSpaceError, content_words


class Names:
    """The names of classes, their synonyms and what these mean."""

    def __init__(self, classes: Sequence[ClassInfo]) -> None:
        synonyms = {normalise_name(word): row for row, info in enumerate(classes) for word in info.synonyms}
        # A synonym that is itself the name of a class means that class.
        self._rows = synonyms | {info.name: row for row, info in enumerate(classes)}
        self._meanings = _unique_meanings(self._rows)

    def row(self, phrase: str) -> int | None:
        """Row of the class that a phrase names; None where it names none."""
        known = self._rows.get(normalise_name(phrase))
        return known if known is not None else self._meanings.get(_meaning(phrase))


def _unique_meanings(rows: Mapping[str, int]) -> dict[frozenset[str], int]:
    """Row by meaning; words that mean two classes mean none."""
    found: dict[frozenset[str], set[int]] = {}
    for phrase, row in rows.items():
        found.setdefault(_meaning(phrase), set()).add(row)
    return {words: row.pop() for words, row in found.items() if words and len(row) == 1}


def _meaning(phrase: str) -> frozenset[str]:
    """Its words without order, grammar and adjectives: "metastasis in the spleen" is "splenic metastasis"."""
    try:
        return frozenset(content_words(phrase))
    except TextSpaceError:  # no words at all
        return frozenset()


_ATLAS_NAMES = Names(tuple(ATLAS.values()))


def in_atlas(phrase: str) -> ClassInfo:
    """The class of the atlas that a phrase names; otherwise the phrase as it is."""
    row = _ATLAS_NAMES.row(phrase)
    return ClassInfo(phrase, ClassKind.ORGAN) if row is None else tuple(ATLAS.values())[row]
