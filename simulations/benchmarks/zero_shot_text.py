"""Which text space does the zero-shot protocol ask with? The offline encoder, or saved CLIP embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import normalize

from dsm_core.classes import ATLAS
from dsm_core.config import TextConfig
from dsm_core.data.phantoms import PHANTOM_CLASSES
from dsm_core.text_bank import read_bank
from dsm_core.text_building import build_text_space, centre_bank
from dsm_core.text_space import TextSpace

OFFLINE, CLIP = "hashed words (not CLIP)", "CLIP ViT-B/32 (saved)"
# The saved embeddings know two kidneys: both together stand for "kidney".
MADE_OF: Mapping[str, tuple[str, ...]] = {"kidney": ("left kidney", "right kidney")}


def text_space(encoder: str, bank: Path | None) -> TextSpace:
    """The text space of the classes of generated sites, without those that saved embeddings do not know.

    Args:
        bank: the file of saved embeddings, for `CLIP`.

    Raises:
        TextSpaceError: the file is no bank of embeddings.
    """
    if encoder == OFFLINE or bank is None:
        return build_text_space([ATLAS[name] for name in PHANTOM_CLASSES], TextConfig(encoder="offline"))
    saved = read_bank(bank)
    classes, vectors = list(saved.classes), list(saved.embeddings)
    for name, parts in MADE_OF.items():
        if name not in saved.rows and all(part in saved.rows for part in parts):
            classes.append(ATLAS[name])
            both = saved.embeddings[[saved.rows[part] for part in parts]]
            vectors.append(normalize(both, dim=1).mean(0))
    extended = replace(saved, classes=tuple(classes), embeddings=torch.stack(vectors))
    return centre_bank(extended, [ATLAS[name] for name in PHANTOM_CLASSES if name in extended.rows], encoder)
