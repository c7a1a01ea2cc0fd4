"""How the server asks sites and waits for their answers: one deadline, answers handed on as they arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

LONGEST_REASON = 300  # characters of a site's error that enter a record
EXPIRY_GRACE_S = 60.0  # a message outlives its deadline by this, for clocks that differ


class FederationError(RuntimeError):
    """The federation cannot start or go on; the message says why."""


class Exchange:
    """Messages under way to some nodes, all under one deadline.

    Attributes:
        unsent: nodes to which a message could not be sent.
    """

    def __init__(self, grid: Grid, timeout_s: float, group: str = "") -> None:
        self._grid, self._group = grid, group
        self._timeout_s, self._deadline = timeout_s, time.monotonic() + timeout_s
        self._awaited: dict[str, int] = {}
        self.unsent: set[int] = set()

    @property
    def awaited(self) -> set[int]:
        """Nodes whose answer has not arrived."""
        return set(self._awaited.values())

    def send(self, contents: Mapping[int, RecordDict], kind: str) -> None:
        """Send each node its content; may be called while `replies` is being read."""
        ttl = self._timeout_s + EXPIRY_GRACE_S
        pairs = [
            (node, Message(content, node, kind, group_id=self._group, ttl=ttl)) for node, content in contents.items()
        ]
        accepted = set(self._grid.push_messages([message for _, message in pairs]))
        for node, message in pairs:
            if message.metadata.message_id in accepted:
                self._awaited[message.metadata.message_id] = node
            else:
                self.unsent.add(node)

    def replies(self) -> Iterator[tuple[int, Message]]:
        """Node and reply in order of arrival, until nothing is awaited or the deadline has passed."""
        poll_s = getattr(self._grid, "pull_interval", 0.5)
        while self._awaited:
            for reply in self._grid.pull_messages(list(self._awaited)):
                node = self._awaited.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    yield node, reply
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                return
            if self._awaited and poll_s:
                time.sleep(min(poll_s, left_s))


def reason_of(reply: Message) -> str:
    """What an error reply says, on one line and no longer than a record bears."""
    text = " ".join(f"{reply.error.reason or 'no reason given'}".split())
    return text[:LONGEST_REASON] + (f" (error {reply.error.code})" if reply.error.code < 100 else "")
