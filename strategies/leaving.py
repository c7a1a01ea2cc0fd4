"""What leaves a site? Everything that a reply may hold, with its reason, and what becomes of it in private training.

The list is checked: a reply that holds anything else is not sent (`check_leaving`), and a test reads the bytes on the
wire. A place is a path through the reply, `*` standing for any name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from strategies.tensor_row import tensor_names


class Private(Enum):
    """What becomes of it while `privacy.mode=dp_sgd`."""

    NOISED = "noised and accounted: inside epsilon"
    DROPPED = "not sent"
    DECLARED = "sent as declared before the run, by the site's choice: outside epsilon"
    WITHOUT_PATIENTS = "sent: does not depend on any patient"


@dataclass(frozen=True)
class Leaving:
    """One thing that leaves.

    Attributes:
        reply: message type that it answers; "*" for any.
        why: what it is needed for.
    """

    what: str
    reply: str
    place: str
    why: str
    private: Private


WHAT_LEAVES = (
    Leaving(
        "tensors of the model that the stage trains",
        "train",
        "arrays/*",
        "averaged to the next global model; what is frozen in the stage does not leave, and is refused if it comes",
        Private.NOISED,
    ),
    Leaving(
        "AdamW's moments of each tensor",
        "train",
        "arrays/*@exp_avg*",
        "averaged like the tensors, with server.moments=shared; functions of noised gradients only; zero when a stage "
        "begins",
        Private.NOISED,
    ),
    Leaving("mean training loss of the round", "train", "metrics/loss", "curves, best checkpoint", Private.DROPPED),
    Leaving("cases trained on", "train", "metrics/num-cases", "for the reader of a run", Private.DROPPED),
    Leaving("seconds of the round", "train", "metrics/seconds", "finding slow sites", Private.DROPPED),
    Leaving("name of the site", "query.enrol", "order/contract/site", "every message about the site", Private.DECLARED),
    Leaving("number of annotated cases", "query.enrol", "order/contract/cases", "averaging weight", Private.DECLARED),
    Leaving(
        "labelled classes and what they are",
        "query.enrol",
        "order/contract/classes/*",
        "text space, conflicts between sites",
        Private.DECLARED,
    ),
    Leaving(
        "cases that annotate a class",
        "query.enrol",
        "order/contract/classes/*/cases",
        "evidence: averaging weight of the class row",
        Private.DECLARED,
    ),
    Leaving(
        "spacing, size and intensity of the scans, as sums",
        "query.enrol",
        "order/contract/fingerprint/*",
        "choosing a grid for all sites; only in a contract that a person made, never in an answer",
        Private.DECLARED,
    ),
    Leaving("no fingerprint", "query.enrol", "order/contract/fingerprint", "its place", Private.WITHOUT_PATIENTS),
    Leaving("hash of the text space held", "query.text", "order/text-hash", "agreement", Private.WITHOUT_PATIENTS),
    Leaving(
        "kind of a refusal or fault, as a number", "*", "error/code", "what the server does next", Private.DECLARED
    ),
    Leaving(
        "a refusal or fault in words without path or patient; of a budget only `refused: budget`",
        "*",
        "error/reason",
        "the run's record",
        Private.DECLARED,
    ),
    Leaving(
        "Flower's envelope: run, node, message and group ids, type, times",
        "*",
        "metadata/*",
        "delivery; the time of an answer tells how long it took, which privacy.mode does not hide",
        Private.DECLARED,
    ),
)


class UnlistedContent(ValueError):
    """A reply that holds what the list does not allow; it is not sent."""


def check_leaving(reply: str, content: RecordDict, is_private: bool = False) -> None:
    """Return silently if everything in a reply may leave.

    Raises:
        UnlistedContent: something that is not in `WHAT_LEAVES`, or that private training drops.
    """
    for place in places(content):
        found = leaving(reply, place)
        if found is None:
            raise UnlistedContent(f"{place} of a {reply} reply is not in WHAT_LEAVES; do not send it, or list it there")
        if is_private and found.private is Private.DROPPED:
            raise UnlistedContent(f"{place} ({found.what}) must not leave a site that trains privately")


def leaving(reply: str, place: str) -> Leaving | None:
    """The entry of the list that a place falls under, the most particular one; None where it must not leave."""
    found = [item for item in WHAT_LEAVES if item.reply in ("*", reply) and fnmatchcase(place, item.place)]
    return max(found, key=lambda item: len(item.place), default=None)


def places(content: RecordDict) -> Iterator[str]:
    """Every place in a reply that holds something; tensors by name, and the label contract is looked into."""
    for record, values in content.items():
        if isinstance(values, ArrayRecord):
            yield from (f"{record}/{name}" for name in tensor_names(values))
            continue
        for key, value in values.items():
            if key == "contract" and isinstance(value, str):
                yield from (f"{record}/{key}/{path}" for path in _paths(json.loads(value)))
            else:
                yield f"{record}/{key}"


def _paths(value: Any) -> Iterator[str]:
    for key, held in value.items():
        if isinstance(held, dict) and held:
            yield from (f"{key}/{path}" for path in _paths(held))
        else:
            yield str(key)
