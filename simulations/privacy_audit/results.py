"""What did a privacy audit find? `audit.json` of its folder, written and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsm_core.config import ConfigError
from simulations.benchmarks.table import Check
from simulations.results import write_atomically

AUDIT_NAME = "audit.json"
ANY, GAUSSIAN = "any mechanism", "gaussian"
UPDATES, MODEL = "updates", "model"


class AuditError(ConfigError):
    """A folder that holds no audit that can be read."""


@dataclass(frozen=True)
class Finding:
    """A lower bound on epsilon from one attack.

    Attributes:
        claimed_epsilon: of the whole run; None without privacy.
        surface: what the attacker saw: "updates" of every round, or the released "model".
        method: "any mechanism" (`bounds`) or "gaussian" (`gaussian`).
        guesses, correct: of "any mechanism": canaries guessed, and guessed rightly; None for the other method.
        auc: area under the attack's curve; 0.5 is chance.
        noise_multiplier: sigma, None without privacy.
    """

    claimed_epsilon: float | None
    surface: str
    method: str
    lower_bound: float
    confidence: float
    delta: float
    canaries: int
    guesses: int | None
    correct: int | None
    auc: float
    steps: int
    sampling_rate: float
    noise_multiplier: float | None


@dataclass(frozen=True)
class PrivacyAudit:
    """A whole audit.

    Attributes:
        inversion: per update, unprotected first: claimed epsilon, similarity and name of the picture.
        facts: command, commit, seed, versions and what else tells how it was made.
    """

    rows: tuple[Finding, ...]
    checks: tuple[Check, ...]
    inversion: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any]

    def of(self, claimed: float | None, surface: str | None = None, method: str | None = None) -> list[Finding]:
        """The findings under a claim; None is the run without privacy."""
        return [
            row for row in self.rows
            if row.claimed_epsilon == claimed and surface in (None, row.surface) and method in (None, row.method)
        ]  # fmt: skip

    def best(self, claimed: float | None) -> Finding | None:
        """The finding with the largest lower bound under a claim; None where that claim was not audited."""
        return max(self.of(claimed), key=lambda row: row.lower_bound, default=None)


def write_audit(folder: Path, audit: PrivacyAudit) -> Path:
    """Write `audit.json` and give its path."""
    content = {
        "name": "privacy_audit",
        **audit.facts,
        "rows": [asdict(row) for row in audit.rows],
        "checks": [asdict(check) for check in audit.checks],
        "inversion": [dict(item) for item in audit.inversion],
    }
    path = folder / AUDIT_NAME
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def read_audit(folder: str | Path) -> PrivacyAudit:
    """The audit of a folder.

    Raises:
        AuditError: no `audit.json`, or one that this release cannot read.
    """
    path = Path(folder) / AUDIT_NAME
    try:
        content = json.loads(path.read_text())
        known = {key: content.pop(key) for key in ("rows", "checks", "inversion")}
        return PrivacyAudit(
            tuple(Finding(**row) for row in known["rows"]),
            tuple(Check(**check) for check in known["checks"]),
            tuple(known["inversion"]),
            content,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AuditError(
            f"{path} cannot be read ({type(error).__name__}: {error}); make it with "
            f"python -m simulations.privacy_audit --out {path.parent.name}"
        ) from None


def area_under_curve(evidence: Sequence[float], included: Sequence[bool]) -> float:
    """Chance that an included canary has more evidence than one left out (Mann and Whitney 1947), ties by half."""
    from scipy.stats import rankdata

    ranks = rankdata(evidence)
    inside = sum(map(bool, included))
    outside = len(ranks) - inside
    if not inside or not outside:
        return 0.5
    total = float(sum(rank for rank, is_in in zip(ranks, included, strict=True) if is_in))
    return (total - inside * (inside + 1) / 2) / (inside * outside)
