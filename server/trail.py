"""What the coordinator's audit log says of a run: who takes part, with which text space and configuration, each round.

The log lies in the consortium's folder; a run outside a consortium keeps none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from dsm_core.config import config_hash
from server.exchange import FederationError
from server.federation import Federation
from server.rounds import OnRound
from strategies import messages
from strategies.audit import AuditLog
from strategies.manifest import manifest
from strategies.query_fedavg import ServerState


class Trail:
    """The records of one run; of a run outside a consortium, none."""

    def __init__(self, consortium: Path | None, run: str) -> None:
        self._log = AuditLog(consortium / "audit.jsonl") if consortium else None
        self._run = run

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Record why a run could not begin or go on, and let the error pass."""
        try:
            yield
        except FederationError as error:
            self._record("failed", reason=f"{error}")
            raise

    def begin(self, federation: Federation) -> None:
        """Record sites, label contracts, text space, configuration and first tensors, before round 1."""
        config = messages.pack_config(federation.config)
        self._record(
            "began",
            sites=sorted(federation.nodes),
            contracts={site: contract.evidence() for site, contract in sorted(federation.contracts.items())},
            bank=federation.text.hash,
            configuration=hashlib.sha256(config.encode()).hexdigest(),
            config_hash=config_hash(federation.config),
            **self._tensors(federation.state),
        )

    def each(self, on_round: OnRound) -> OnRound:
        """The same, with a record of each round before it."""

        def follow(round: int, record: dict[str, Any], state: ServerState) -> None:
            told = {key: record[key] for key in ("sites", "refused", "failed")}
            self._record("round", round=round, **told, **self._tensors(state))
            on_round(round, record, state)

        return follow

    def _tensors(self, state: ServerState) -> dict[str, Any]:
        """The global tensors, as the next round sends them to every site."""
        return manifest(RecordDict({messages.ARRAYS: messages.pack_arrays(state.arrays)})) if self._log else {}

    def _record(self, event: str, **facts: Any) -> None:
        if self._log is not None:
            self._log.record(event, run=self._run, **facts)
