"""Which phrases were encoded for this site elsewhere? Their vectors, a safe file a text space, for use offline.

Axis legend: `m` phrases, `E` text width. A site without the text tower has the coordinator encode a phrase once
(`dsm-site encode`); from then on `dsm-predict` finds it here. The vectors belong to one text space, by its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from dsm_core.classes import normalise_name
from dsm_core.durable import replace_file
from dsm_core.text_space import TextSpace, TextSpaceError


def cache_folder() -> Path:
    """Where phrases are kept if nothing else is said: `FED_DSM_CACHE`, else `.cache/fed-dsm` of the user's home."""
    return Path(os.environ.get("FED_DSM_CACHE") or Path.home() / ".cache" / "fed-dsm")


def with_cached_phrases(space: TextSpace, folder: Path) -> TextSpace:
    """The text space with every phrase that is kept for it.

    Raises:
        TextSpaceError: the file is damaged, or was made for another text space.
    """
    return replace(space, taught=dict(_read(_path(space, folder), space)))


def keep_phrases(space: TextSpace, phrases: Sequence[str], vectors: Tensor, folder: Path) -> TextSpace:
    """Keep the vectors of phrases beside those kept before; returns the text space with all of them.

    Two processes that keep phrases at one moment may lose one's, which are then asked for again.

    Args:
        vectors: (m, E), centred, of unit length.

    Raises:
        TextSpaceError: vectors that cannot be of this text space, or a damaged file.
        OSError: the folder cannot be written.
    """
    path = _path(space, folder)
    names = [normalise_name(phrase) for phrase in phrases]
    _check(vectors, len(names), space, "the vectors of these phrases")
    taught = _read(path, space) | dict(zip(names, vectors.float(), strict=True))
    tensor = torch.stack(list(taught.values())) if taught else torch.zeros(0, space.width)
    about = {"phrases": json.dumps(list(taught)), "text_hash": space.hash, "hash": _hash(list(taught), tensor)}
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, safetensors.save({"vectors": tensor}, metadata=about))
    return replace(space, taught=taught)


def _path(space: TextSpace, folder: Path) -> Path:
    return folder / f"phrases-{space.hash}.safetensors"


def _read(path: Path, space: TextSpace) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TextSpaceError(f"{path} cannot be read: {error.strerror}") from error
    try:
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        names, vectors = json.loads(about["phrases"]), safetensors.load(content)["vectors"]
        is_whole = about["hash"] == _hash(names, vectors) and about["text_hash"] == space.hash
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TextSpaceError(f"{path} is damaged ({error}); delete it, and have its phrases encoded again") from error
    if not is_whole:
        raise TextSpaceError(f"{path} is damaged, or of another text space; delete it, and encode its phrases again")
    _check(vectors, len(names), space, f"{path}")
    return dict(zip(names, vectors, strict=True))


def _check(vectors: Tensor, count: int, space: TextSpace, what: str) -> None:
    wanted = (count, space.width)
    # NaN is close to nothing, so that it is refused here too.
    if vectors.shape != wanted or not torch.allclose(vectors.norm(dim=1), torch.ones(count), atol=1e-3):
        raise TextSpaceError(f"{what}: found {tuple(vectors.shape)}, wanted {wanted} rows of unit length")


def _hash(names: Sequence[str], vectors: Tensor) -> str:
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    digest.update(vectors.numpy().astype("<f4").tobytes())
    return digest.hexdigest()
