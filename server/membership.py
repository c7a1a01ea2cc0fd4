"""How do sites come in while a run goes on? Nodes are asked who they are, and nobody at work waits for their answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.serverapp import Grid

from dsm_core.config import Config
from dsm_core.data import LabelContract
from dsm_core.text_space import TextSpace
from server.enrolment import read_contract
from server.exchange import Exchange
from server.members import Members, TurnedAway, let_in
from strategies import messages
from strategies.query_fedavg import ServerState

LOOK_EVERY_S = 5.0  # while a round runs
ASK_AGAIN_S = 300.0  # a site that was turned away may have mended its data folder

log = logging.getLogger(__name__)


class Membership:
    """Watches who connects to the grid.

    Attributes:
        members: who takes part now.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        members: Members,
        names: Callable[[], Mapping[int, str]] | None = None,
        publish: Callable[[TextSpace], None] = lambda text: None,
    ) -> None:
        """Put the parts together.

        Args:
            names: the site that each node is registered as, where that is known.
            publish: is given the text space whenever it has grown, before a round trains on it.
        """
        self.members = members
        self._names = names
        self._publish, self._published = publish, members.text.hash
        self._grid, self._config = grid, config
        self._asked: list[tuple[Exchange, set[int]]] = []
        self._answers: list[tuple[int, LabelContract | str]] = []
        self._turned_away: dict[int, float] = {}
        self._looked = float("-inf")

    def look(self, at_once: bool = False) -> None:
        """Ask nodes that are connected and not known who they are; without `at_once`, not at every call."""
        now = time.monotonic()
        if not at_once and now < self._looked + LOOK_EVERY_S:
            return
        self._looked = now
        connected = set(self._grid.get_node_ids())
        self._turned_away = {
            node: since for node, since in self._turned_away.items() if node in connected and now < since + ASK_AGAIN_S
        }
        known = set(self.members.nodes.values()).union(self._turned_away, *(nodes for _, nodes in self._asked))
        if strangers := connected - known:
            exchange = Exchange(self._grid, self._config.server.round_timeout_s, group="enrol")
            question = messages.pack_enrol(self._config.data.held_out)
            exchange.send(dict.fromkeys(sorted(strangers), question), messages.ENROL)
            self._asked.append((exchange, strangers))

    def admit(self, state: ServerState) -> tuple[ServerState, dict[str, Any]]:
        """Let in who has answered.

        Returns:
            The state that they find, and what the record of the round says: `joined` (site -> its new classes) and
            `turned_away` (site or node -> reason), only where there is something.
        """
        joined: dict[str, list[str]] = {}
        turned_away: dict[str, str] = {}
        self._gather()
        answers, self._answers = sorted(self._answers, key=lambda pair: (_name(*pair), pair[0])), []
        connected = set(self._grid.get_node_ids()) if answers else set()
        for node, answer in answers:
            before = self.members
            try:
                if isinstance(answer, str):
                    raise TurnedAway(answer)
                if self._names and answer.site != (registered := self._names().get(node)):
                    raise TurnedAway(f"it is registered as site {registered!r} and calls itself {answer.site!r}")
                self.members, state = let_in(before, state, node, answer, connected)
            except TurnedAway as reason:
                self._turned_away[node] = time.monotonic()
                turned_away[_name(node, answer)] = f"{reason}"
                log.warning("%s does not take part: %s", _name(node, answer), reason)
                continue
            if answer.site not in before.contracts:
                joined[answer.site] = sorted(set(self.members.text.names) - set(before.text.names))
        self._publish_text()
        events = {"joined": joined, "turned_away": turned_away}
        return state, {name: found for name, found in events.items() if found}

    def reconnect(self, connect_timeout_s: float, on_wait: Callable[[], None]) -> None:
        """Wait until as many nodes are connected as sites are enrolled, or for so long; then for all their answers."""
        deadline = time.monotonic() + connect_timeout_s
        while len(list(self._grid.get_node_ids())) < len(self.members.contracts) and time.monotonic() < deadline:
            on_wait()
            time.sleep(0.5)
        self.look(at_once=True)
        for exchange, _ in self._asked:
            self._answers += [(node, read_contract(reply)) for node, reply in exchange.replies(on_wait)]

    def _publish_text(self) -> None:
        """Before the round that trains on it; where it fails, again before the next one."""
        text = self.members.text
        if text.hash == self._published:
            return
        try:
            self._publish(text)
        except OSError as error:  # training needs no service: the sites get the text space with the round
            log.error("the text space %s is not served yet: %s; tried again next round", text.hash[:12], error)
        else:
            self._published = text.hash

    def _gather(self) -> None:
        """Take in the answers that have arrived; a node that stays silent is told of, and asked again later."""
        for exchange, _ in self._asked:
            self._answers += [(node, read_contract(reply)) for node, reply in exchange.arrived()]
            if exchange.is_over:
                silent = sorted(exchange.awaited | exchange.unsent)
                self._answers += [(node, "did not say which site it is before the deadline") for node in silent]
        self._asked = [(exchange, nodes) for exchange, nodes in self._asked if not exchange.is_over]


def _name(node: int, answer: LabelContract | str) -> str:
    return answer.site if isinstance(answer, LabelContract) else f"node {node}"
