"""What does a site do with the coordinator's answers: keep them, and record in its audit log what it told."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from client.bank_cache import held_bank, keep_bank
from client.connection import tls_files
from client.membership import load_site
from client.text_client import ConsortiumClient
from dsm_core.classes import normalise_name
from dsm_core.data import LabelContract
from dsm_core.phrase_cache import keep_phrases, with_cached_phrases
from dsm_core.text_space import TextSpace, TextSpaceError
from strategies.audit import AuditLog, Head
from strategies.deployment.errors import DeploymentError
from strategies.proto import consortium_pb2 as wire


class Errands:
    """Errands of a site to the coordinator. Whatever leaves is recorded before it does."""

    def __init__(self, client: ConsortiumClient, site: str, state: Path, audit: AuditLog | None = None) -> None:
        """Put the parts together.

        Args:
            site: name of the site in the consortium. state: folder for what is fetched.
        """
        self.client, self.site, self._state, self._audit = client, site, state, audit

    @classmethod
    def open(cls, options: argparse.Namespace) -> Errands:
        """The errands of the site in `--folder`.

        Raises:
            DeploymentError: the folder holds no membership. TlsError: the site's certificate cannot be used.
        """
        site = load_site(options.folder)
        tls = tls_files(site)
        if tls is None:
            raise DeploymentError(
                f"{site.name} has no certificate yet; import the coordinator's with `dsm-site join --certificate`"
            )
        client = ConsortiumClient(site.service, tls, options.timeout_s)
        return cls(client, site.name, site.folder, AuditLog(site.audit))

    def __enter__(self) -> Errands:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.client.__exit__(kind, error, at)

    def held_or_fetched_bank(self) -> TextSpace:
        """The text space that the site holds; the coordinator's where it holds none."""
        return held_bank(self._state) or self.fetch_bank()

    def fetch_bank(self) -> TextSpace:
        """The coordinator's text space, kept at the site; a damaged one is replaced."""
        try:
            held = held_bank(self._state)
        except TextSpaceError:
            held = None
        space = self.client.get_bank(held)
        if held is None or space.hash != held.hash:
            keep_bank(self._state, space)
            self._record("text space", bank=space.hash)
        return space

    def own(self, contract: LabelContract) -> LabelContract:
        """The label contract under the name that the site's certificate states, whatever its folder is called."""
        return replace(contract, site=self.site)

    def enrol(self, contract: LabelContract) -> wire.EnrolReply:
        """Send the label contract; the ends of the two audit logs are exchanged with it."""
        held = held_bank(self._state)
        content = json.dumps(contract.to_dict(), sort_keys=True).encode()
        told = {"contract": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        head = self._record("left", kind="label contract", classes=contract.evidence(), **told)
        own_head = wire.AuditHead(records=head.records, hash=head.hash) if head else None
        reply = self.client.enrol(contract, held.hash if held else "", own_head)
        theirs = f"{Head(reply.audit_head.records, reply.audit_head.hash)}" if reply.HasField("audit_head") else None
        event = "enrolled" if reply.is_accepted else "enrolment refused"
        self._record(event, reasons=list(reply.reasons), coordinator_log=theirs)
        return reply

    def learn(self, space: TextSpace, phrases: Sequence[str], cache: Path) -> list[str]:
        """Have those phrases encoded that nothing here can encode, and keep their vectors; returns them as asked.

        Without such a phrase the coordinator is not called.
        """
        space = with_cached_phrases(space, cache)
        unknown = space.unknown(phrases) if space.phrase_encoder is None else []
        if unknown:
            self._record("left", kind="phrases", phrases=unknown, bank=space.hash)
            keep_phrases(space, unknown, self.client.encode(unknown, space.hash, space.width), cache)
        return [phrase for phrase in phrases if normalise_name(phrase) in unknown]

    def _record(self, event: str, **facts: object) -> Head | None:
        return self._audit.record(event, site=self.site, **facts) if self._audit else None
