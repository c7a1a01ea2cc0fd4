"""What both sides of the coordinator's gRPC service rely on: limits, releases, a text space cut into parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib import metadata

from dsm_core.classes import normalise_name
from strategies.proto.consortium_pb2 import BankPart

MAX_REQUEST_BYTES = 1 << 20  # a label contract of a thousand classes is a tenth of this
MAX_REPLY_BYTES = 4 << 20
PART_BYTES = 256 << 10
MAX_BANK_BYTES = 64 << 20  # 45 classes of CLIP ViT-B/32 are 0.2 MB
MAX_PHRASES = 64
MAX_PHRASE_CHARS = 200
WATCH_LEASE_S = 60.0  # a progress stream ends after this and is asked for again, so that a dead server is noticed


class BankFault(ValueError):
    """Parts that are not the text space they state; nothing of them is kept."""


class PhraseFault(ValueError):
    """Phrases that cannot be asked for; the message names the limit.

    Attributes:
        is_too_much: they are too many or too long, rather than empty.
    """

    def __init__(self, message: str, is_too_much: bool) -> None:
        super().__init__(message)
        self.is_too_much = is_too_much


def release(package: str = "fed-dsm") -> str:
    """The installed release of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def check_phrases(phrases: Iterable[str]) -> list[str]:
    """The phrases as a list, found to be within the limits.

    Raises:
        PhraseFault: none, an empty one, too many, or one that is too long.
    """
    asked = list(phrases)
    if not asked or not all(normalise_name(phrase) for phrase in asked):
        raise PhraseFault(f"found {'an empty phrase' if asked else 'no phrase'}; wanted words, as 'liver tumor'", False)
    if len(asked) > MAX_PHRASES:
        raise PhraseFault(f"found {len(asked)} phrases; one call takes {MAX_PHRASES}, ask in several", True)
    if longest := max((len(phrase) for phrase in asked if len(phrase) > MAX_PHRASE_CHARS), default=0):
        raise PhraseFault(f"found a phrase of {longest} characters; wanted {MAX_PHRASE_CHARS} at most", True)
    return asked


def bank_parts(content: bytes, bank_hash: str, held_hash: str = "") -> Iterator[BankPart]:
    """A text space's bytes in parts; one empty part where the site holds it already."""
    if held_hash == bank_hash:
        yield BankPart(hash=bank_hash)
        return
    for start in range(0, len(content), PART_BYTES):
        part = BankPart(content=content[start : start + PART_BYTES])
        if start == 0:
            part.hash, part.total_bytes = bank_hash, len(content)
        yield part


def join_parts(parts: Iterable[BankPart]) -> tuple[str, bytes | None]:
    """Stated hash and bytes of a text space, None for the bytes where the site holds them already.

    Raises:
        BankFault: no part, one without a hash, or more or fewer bytes than were stated.
    """
    remaining = iter(parts)
    first = next(remaining, None)
    if first is None or len(first.hash) != 2 * hashlib.sha256().digest_size:
        raise BankFault("the coordinator sent no text space, or one without its hash; ask again")
    if not first.total_bytes and not first.content:
        return first.hash, None
    if first.total_bytes > MAX_BANK_BYTES:
        raise BankFault(f"the coordinator states a text space of {first.total_bytes} bytes; at most {MAX_BANK_BYTES}")
    content = bytearray(first.content)
    for part in remaining:
        content += part.content
        if len(content) > first.total_bytes:
            break
    if len(content) != first.total_bytes:
        raise BankFault(f"the text space came with {len(content)} of {first.total_bytes} bytes; ask again")
    return first.hash, bytes(content)
