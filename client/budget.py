"""What may this site spend of its patients' privacy? Its ledger, and what its own settings say of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from client.ledger import Accountant, Ledger


@dataclass(frozen=True)
class Budget:
    """A site's own facts about its ledger; no server sets them.

    Attributes:
        ledger: where it lies; it need not exist.
        is_named: the site says that there is one, so that a missing one is lost and not absent.
        ceiling: `epsilon_ceiling` of site.yaml; the ledger's own holds as well.
    """

    ledger: Path
    is_named: bool = False
    ceiling: float | None = None

    @property
    def wants_privacy(self) -> bool:
        """Whether the site trains privately or not at all."""
        return self.is_named or self.ceiling is not None or os.path.lexists(self.ledger)

    def open(self, site: str, accountant: Accountant) -> Ledger:
        """The ledger, held to both ceilings."""
        return Ledger(self.ledger, site, accountant, ceiling=self.ceiling)
