"""How the server asks sites and waits for their answers: one deadline, answers handed on as they arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE, ErrorCode
from flwr.serverapp import Grid

LONGEST_REASON = 300  # characters of a site's error that enter a record
LOST_AFTER_S = HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL  # until Flower takes a silent SuperNode for gone
# What Flower says in a site's place, in words that tell the person at that site where to look.
FLOWERS_WORDS = {
    ErrorCode.NODE_UNAVAILABLE: (
        f"its connection was lost: no sign of life for {LOST_AFTER_S} s; its machine, its network or `dsm-site start` "
        "has stopped, `dsm-site doctor` there finds which"
    ),
    ErrorCode.CLIENT_APP_CRASHED: (
        "its training process ended without an answer: killed, or out of memory; the site is connected, and is asked "
        "again in the next round"
    ),
}
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

    @property
    def is_over(self) -> bool:
        """Whether nothing is awaited, or the deadline has passed."""
        return not self._awaited or time.monotonic() >= self._deadline

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

    def arrived(self) -> Iterator[tuple[int, Message]]:
        """Node and reply of the answers that are there now."""
        for reply in self._grid.pull_messages(list(self._awaited)) if self._awaited else ():
            node = self._awaited.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield node, reply

    def replies(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Message]]:
        """Node and reply in order of arrival, until nothing is awaited or the deadline has passed.

        Args:
            on_wait: called again and again while an answer is awaited.
        """
        poll_s = getattr(self._grid, "pull_interval", 0.5)
        while self._awaited:
            yield from self.arrived()
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                return
            if self._awaited:
                on_wait()
                time.sleep(min(poll_s, left_s))


@dataclass(frozen=True)
class _Late:
    exchange: Exchange
    sites: Mapping[int, str]
    round: int
    since: float


class LateAnswers:
    """Answers to earlier rounds that are still out: noted when they come, and never averaged."""

    def __init__(self) -> None:
        self._out: list[_Late] = []

    def expect(self, exchange: Exchange, sites: Mapping[int, str], round: int) -> None:
        """Look out for the answers that this exchange did not see before its deadline."""
        if exchange.awaited:
            self._out.append(_Late(exchange, sites, round, time.monotonic()))

    def collect(self) -> list[dict[str, object]]:
        """Which sites have answered since the last call: site, the round they answered, seconds after its deadline."""
        now = time.monotonic()
        found = [
            {"site": late.sites[node], "round": late.round, "late_s": now - late.since}
            for late in self._out
            for node, reply in late.exchange.arrived()
            if not reply.has_error()
        ]
        self._out = [late for late in self._out if late.exchange.awaited and now < late.since + EXPIRY_GRACE_S]
        return found


def reason_of(reply: Message) -> str:
    """What an error reply says, on one line and no longer than a record bears."""
    said = FLOWERS_WORDS.get(reply.error.code, reply.error.reason)
    text = " ".join(f"{said or 'no reason given'}".split())
    return text[:LONGEST_REASON] + (f" (error {reply.error.code})" if reply.error.code < 100 else "")


def silence(is_connected: bool, timeout_s: float) -> str:
    """Why there is no answer at the deadline, as far as the coordinator can tell."""
    if not is_connected:
        return f"no answer within {timeout_s:g} s: its connection was lost"
    return (
        f"no answer within {timeout_s:g} s, though it is connected: slower than server.round_timeout_s, or cut off "
        f"less than {LOST_AFTER_S} s ago"
    )
