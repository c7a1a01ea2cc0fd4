"""Which sites have enrolled over gRPC, with which label contracts; kept over restarts of the service."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from dsm_core.data import ContractError, LabelContract, find_conflicts
from dsm_core.durable import replace_file


class ContractBook:
    """Label contracts of enrolled sites in one JSON file."""

    def __init__(self, path: Path, members: Callable[[], Collection[str]]) -> None:
        """Name the file; it is made with the first contract.

        Args:
            members: sites that belong to the consortium now; the contract of one that left binds nobody.
        """
        self.path, self._members = path, members
        self._lock = threading.Lock()

    def contracts(self) -> dict[str, LabelContract]:
        """Contracts of the sites that have enrolled and still belong to the consortium, by site.

        Raises:
            ContractError: the file is damaged.
        """
        if not self.path.is_file():
            return {}
        try:
            held = [LabelContract.from_dict(content) for content in json.loads(self.path.read_text())]
        except json.JSONDecodeError as error:
            raise ContractError(
                f"{self.path} is no JSON ({error}); put back a copy, or let every site enrol again"
            ) from None
        members = self._members()
        return {contract.site: contract for contract in held if contract.site in members}

    def conflicts(self, contract: LabelContract) -> list[str]:
        """Reasons why this contract contradicts the enrolled ones of other sites; empty where it does not."""
        others = [held for site, held in self.contracts().items() if site != contract.site]
        before = set(find_conflicts(others))
        return [reason for reason in find_conflicts([*others, contract]) if reason not in before]

    def enrol(self, contract: LabelContract, record: Callable[[list[str]], None] = lambda reasons: None) -> list[str]:
        """Enrol a site where its contract contradicts no other; otherwise the reasons, and nothing changes.

        A site that enrols again replaces its own contract, so a call that is repeated changes nothing.

        Args:
            record: told of the reasons before anything is kept; what it raises stops the enrolment.
        """
        with self._lock:
            reasons = self.conflicts(contract)
            record(reasons)
            if not reasons:
                book = {**self.contracts(), contract.site: contract}
                content = json.dumps([book[site].to_dict() for site in sorted(book)], sort_keys=True)
                replace_file(self.path, content.encode())
            return reasons
