"""How does the text space of some classes come about: encoded or looked up, then centred on the mean of the bank?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from dsm_core.classes import ClassInfo
from dsm_core.config import TextConfig
from dsm_core.hashed_words import HASHED_WORDS, HashedWords, TextSpaceError
from dsm_core.text_bank import Bank, SavedEmbeddings, centred
from dsm_core.text_encoders import load_encoder, make_bank
from dsm_core.text_space import TextSpace


def build_text_space(classes: Iterable[ClassInfo], config: TextConfig) -> TextSpace:
    """The text space of the given classes, centred on the mean over the atlas and these classes.

    A bank of saved embeddings is centred on its own mean, and must hold the classes asked for.

    Raises:
        TextSpaceError: no class, two classes of one name, an encoder that is not available, a class it does not know.
    """
    wanted = tuple(sorted(classes, key=lambda info: info.name))
    names = [info.name for info in wanted]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if not names or doubled:
        raise TextSpaceError(f"a text space wants one or more classes of different names, found {doubled or 'none'}")
    encoder = load_encoder(config)
    is_saved = isinstance(encoder, SavedEmbeddings)
    bank = encoder.bank if isinstance(encoder, SavedEmbeddings) else make_bank(encoder, wanted, config)
    space = centre_bank(bank, wanted, bank.model if bank.model == HASHED_WORDS else encoder.name)
    if is_saved and config.weights:
        return space.with_encoder(config)
    return space if space.phrase_encoder is not None else replace(space, phrase_encoder=encoder)


def centre_bank(bank: Bank, classes: Sequence[ClassInfo], name: str) -> TextSpace:
    """The text space of some classes of a bank, centred on the mean of the bank.

    Args:
        name: what made the vectors, as it is shown.

    Raises:
        TextSpaceError: a class that the bank does not hold, or one whose vector equals the mean.
    """
    SavedEmbeddings(bank).encode([info.name for info in classes])
    unit = torch.nn.functional.normalize(bank.embeddings.double(), dim=1)
    mean = unit.mean(dim=0).float()
    vocabulary = [info.name for info in bank.classes]
    rows = dict(zip(vocabulary, centred(unit, mean, vocabulary), strict=True))
    wanted = sorted((bank.describe(info) for info in classes), key=lambda info: info.name)
    names = [info.name for info in wanted]
    # Hashed words are at hand everywhere, so that no vector has to travel along.
    further = () if bank.model == HASHED_WORDS else tuple(each for each in vocabulary if each not in names)
    return TextSpace(
        classes=tuple(wanted),
        vectors=torch.stack([rows[each] for each in names]),
        mean=mean,
        encoder=name,
        phrases=further,
        phrase_vectors=torch.stack([rows[each] for each in further]) if further else torch.zeros(0, len(mean)),
        recipe=bank.recipe,
        phrase_encoder=HashedWords(len(mean)) if bank.model == HASHED_WORDS else None,
    )
