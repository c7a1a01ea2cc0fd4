"""Who is asked in a round? A share of the sites that can teach its stage, and how many of them must answer."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dsm_core.config import Config


@dataclass(frozen=True)
class RoundPlan:
    """Who is asked in a round.

    Attributes:
        asked: sites that get the order, sorted.
        absent: sites that would have been asked and are not connected, sorted.
        needed: usable updates below which the run stops.
    """

    asked: tuple[str, ...]
    absent: tuple[str, ...]
    needed: int


def plan_round(config: Config, round: int, enrolled: Collection[str], online: Collection[str]) -> RoundPlan:
    """`server.participation` of the sites that can teach, drawn from the seed and the round among those connected."""
    wanted = max(1, int(config.server.participation * len(enrolled) + 0.5))
    asked, absent = sorted(online), sorted(set(enrolled) - set(online))
    if len(asked) >= wanted:
        drawn = np.random.default_rng([config.seed, round]).choice(len(asked), wanted, replace=False)
        asked, absent = sorted(asked[i] for i in drawn), []
    return RoundPlan(tuple(asked), tuple(absent), max(1, math.ceil(config.server.quorum * wanted)))
