"""What has been shown by attack, beside what is claimed? The `audit.json` that lies in a sweep's folder."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.privacy_audit.results import AUDIT_NAME, read_audit
from simulations.sweep.runs import Folder


@dataclass(frozen=True)
class AuditedBound:
    """What attacks on models trained as privately have shown: epsilon is at least this, with this confidence."""

    claimed: float
    lower_bound: float
    confidence: float


def audited_bounds(folder: Folder) -> list[AuditedBound]:
    """The best attack of each claim in the `audit.json` beside the runs; none where no audit lies there.

    Raises:
        AuditError: an audit lies there and cannot be read.
    """
    if not (folder.path / AUDIT_NAME).exists():
        return []
    audit = read_audit(folder.path)
    claims = sorted({row.claimed_epsilon for row in audit.rows if row.claimed_epsilon is not None})
    best = [found for claim in claims if (found := audit.best(claim)) is not None]
    return [AuditedBound(row.claimed_epsilon or 0.0, row.lower_bound, row.confidence) for row in best]
