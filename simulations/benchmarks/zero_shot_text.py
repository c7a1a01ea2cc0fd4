"""Which text space does the zero-shot protocol ask with? The offline encoder, or saved CLIP embeddings."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from dsm_core.classes import ATLAS
from dsm_core.config import TextConfig
from dsm_core.data.phantoms import PHANTOM_CLASSES
from dsm_core.text_encoders import SavedEmbeddings
from dsm_core.text_space import TextSpace, build_text_space

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
    saved = SavedEmbeddings(bank)
    rows = dict(saved.rows)
    for name, parts in MADE_OF.items():
        if name not in rows and all(part in rows for part in parts):
            rows[name] = torch.stack([normalize(rows[part], dim=0) for part in parts]).mean(0)
    known = [ATLAS[name] for name in PHANTOM_CLASSES if name in rows]
    with tempfile.TemporaryDirectory() as folder:
        extended = Path(folder) / "bank.safetensors"
        about = {"classes": json.dumps(list(rows)), "model": encoder}
        save_file({"embeddings": torch.stack(list(rows.values()))}, extended, about)
        return build_text_space(known, TextConfig(encoder="bank", bank=str(extended)))
