"""What has been shown by attack, beside what is claimed? The `audit.json` that lies in a sweep's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass

from simulations.sweep.runs import Folder


@dataclass(frozen=True)
class AuditedBound:
    """What attacks on models trained as privately have shown: epsilon is at least this, with this confidence."""

    claimed: float
    lower_bound: float
    confidence: float


def audited_bounds(folder: Folder) -> list[AuditedBound]:
    """The best attack of each claim in the `audit.json` beside the runs; none where no audit lies there."""
    path = folder.path / "audit.json"
    if not path.exists():
        return []
    best: dict[float, AuditedBound] = {}
    for found in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        if found["claimed_epsilon"] is not None:
            bound = AuditedBound(found["claimed_epsilon"], found["lower_bound"], found["confidence"])
            best[bound.claimed] = max(bound, best.get(bound.claimed, bound), key=lambda one: one.lower_bound)
    return [best[claimed] for claimed in sorted(best)]
