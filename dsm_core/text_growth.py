"""How does the text space take in new classes during a run, without moving a vector that the model was trained on?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from dsm_core.classes import ClassInfo
from dsm_core.text_space import TextSpace, TextSpaceError


def grow_text_space(space: TextSpace, classes: Iterable[ClassInfo]) -> TextSpace:
    """The text space with those of the classes that it lacks; the same object where it lacks none.

    New vectors are centred on the mean of the first bank: a mean over more classes would turn every old vector, and
    the model knows the old ones. So old vectors, and what the bank says of an old class, stay bit for bit.

    Raises:
        TextSpaceError: a new class is a synonym of one in the bank, or its vector is neither in the bank nor can be
            made (the encoder is not at hand: see `TextSpace.with_encoder`).
    """
    fresh = {info.name: info for info in classes if info.name not in space.names}
    if not fresh:
        return space
    for name in fresh:
        if known := space.find(name):
            raise TextSpaceError(
                f"the new class {name!r} is a synonym of {known.name!r} of the text space; use that name"
            )
    vectors = dict(zip(space.names, space.vectors, strict=True))
    vectors |= dict(zip(fresh, space.encode(list(fresh)), strict=True))
    infos = {info.name: info for info in space.classes} | fresh
    further = [row for row, phrase in enumerate(space.phrases) if phrase not in fresh]
    return replace(
        space,
        classes=tuple(infos[name] for name in sorted(infos)),
        vectors=torch.stack([vectors[name] for name in sorted(infos)]),
        phrases=tuple(space.phrases[row] for row in further),
        phrase_vectors=space.phrase_vectors[further],
    )
