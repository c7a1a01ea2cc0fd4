"""How does a phrase become a vector where no pretrained text tower is at hand: by hashing its words.

Axis legend: `k` phrases, `E` text width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dsm_core.classes import ATLAS, ORGAN_ADJECTIVES, ClassKind, normalise_name

HASHED_WORDS = "hashed words (deterministic, not CLIP)"


class TextSpaceError(ValueError):
    """A phrase, an encoder or a saved text space that cannot be used; the message says what was found and wanted."""


_WORD_FORMS = ORGAN_ADJECTIVES | {
    "vertebra": "vertebrae",
    "vertebral": "vertebrae",
    "spinal": "spine",
    "metastases": "metastasis",
    "metastatic": "metastasis",
    "cystic": "cyst",
    "thrombi": "thrombus",
    "masse": "mass",
}
# Share of the tumor vector in each lesion word; the rest is the word's own.
_TUMOR_SHARE = {
    "tumor": 1.0,
    "cancer": 0.9,
    "neoplasm": 0.9,
    "carcinoma": 0.85,
    "adenocarcinoma": 0.85,
    "malignancy": 0.85,
    "metastasis": 0.8,
    "lesion": 0.8,
    "mass": 0.8,
    "nodule": 0.75,
    "sarcoma": 0.75,
    "lymphoma": 0.7,
    "target": 0.5,
    "thrombus": 0.4,
    "cyst": 0.4,
}
_WEIGHT_OF_LESION = 1.15
_WEIGHT_OF_PHRASE = 0.15  # the phrase as a whole, so that equal words in part are never equal meaning
_SIDES = "right left upper lower anterior posterior superior inferior"
_QUALIFIERS = "gland head lobe segment wall cord cell small large gross planning soft primary benign"
_MODIFIER_WEIGHTS = dict.fromkeys(_SIDES.split(), 0.55) | dict.fromkeys(_QUALIFIERS.split(), 0.45)
_IDLE = "a an and the of in on at to for with from by is this that ct scan image computed computerized tomography"
_STOP_WORDS = frozenset(_IDLE.split())
_ORGAN_SYNONYMS = {
    synonym: info.name for info in ATLAS.values() if info.kind is ClassKind.ORGAN for synonym in info.synonyms
}


class HashedWords:
    """A deterministic encoder without weights: a phrase is the weighted sum of its words' hash-seeded sign vectors.

    Phrases that share an organ or a lesion word are close, laterality moves a phrase moderately, and words it has
    never met are merely random directions: it knows spelling, not medicine. SHA-256 counters make the word vectors
    equal on every platform.
    """

    name = HASHED_WORDS

    def __init__(self, width: int = 512) -> None:
        self.width = width

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Unit vectors of the phrases, (k, width) float32.

        Raises:
            TextSpaceError: a phrase holds no letter or digit.
        """
        rows = [self._phrase(phrase) for phrase in phrases]
        return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), self.width))

    def left_out(self, phrase: str) -> str:
        """Nothing: it reads a phrase of any length."""
        return ""

    def _phrase(self, phrase: str) -> np.ndarray:
        words = content_words(phrase)
        vector = sum((self._word(word) for word in words), np.zeros(self.width))
        if len(words) > 1:
            vector = vector + _WEIGHT_OF_PHRASE * _sign_vector("phrase:" + " ".join(sorted(words)), self.width)
        return vector / np.linalg.norm(vector)

    def _word(self, word: str) -> np.ndarray:
        share = _TUMOR_SHARE.get(word)
        if share is None:
            return _MODIFIER_WEIGHTS.get(word, 1.0) * _sign_vector(word, self.width)
        own = np.sqrt(1 - share**2) * _sign_vector(word, self.width)
        return _WEIGHT_OF_LESION * (share * _sign_vector("tumor", self.width) + own)


def content_words(phrase: str) -> list[str]:
    """The phrase's meaningful words in one spelling: "Metastases of the renal parenchyma" -> ["metastasis", "kidney"].

    Raises:
        TextSpaceError: the phrase holds no letter or digit.
    """
    text = " ".join(re.findall(r"\w+", normalise_name(phrase)))
    if not text:
        raise TextSpaceError(f"a text query needs words; found {phrase!r}")
    for synonym in sorted(_ORGAN_SYNONYMS, key=len, reverse=True):
        text = re.sub(rf"\b{synonym}\b", _ORGAN_SYNONYMS[synonym], text)
    words = [word for word in text.split() if word not in _STOP_WORDS] or text.split()
    forms = [_WORD_FORMS.get(word, word) for word in map(_singular, words)]
    return list(dict.fromkeys(forms))


def _singular(word: str) -> str:
    is_plural = len(word) > 4 and word.endswith("s") and word[-2] not in "suia" and word not in _WORD_FORMS
    return word[:-1] if is_plural else word


def _sign_vector(text: str, width: int) -> np.ndarray:
    """Unit vector with entries +-1/sqrt(width), whose signs are bits of SHA-256(text, counter)."""
    digests = b"".join(hashlib.sha256(f"{text}#{block}".encode()).digest() for block in range(-(-width // 256)))
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8))[:width]
    return (bits * 2.0 - 1.0) / np.sqrt(width)
