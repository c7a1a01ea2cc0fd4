"""Many sites in one process: a Flower Grid that calls the same ServerApp and ClientApp without any network.

Messages are not serialised and not copied: the records of a message are bytes that nobody changes, and every site
unpacks them into arrays of its own.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

# Message() reads the sender from this process-wide identity; Flower 1.41 offers no public way to set it.
from flwr.supercore.task_identity import TaskIdentity

log = logging.getLogger(__name__)
Result = TypeVar("Result")
LONGEST_PULL_S = 0.05
_run_ids = itertools.count(1)


class InProcessGrid(Grid):
    """Delivers messages to one ClientApp, a node per site folder, on a pool of threads.

    Replies are handed out in the order in which the messages were sent. A node handles one message at a time.
    """

    pull_interval = 0.0  # pull_messages itself waits

    def __init__(
        self,
        client_app: ClientApp,
        site_dirs: Sequence[Path | str],
        run_config: dict[str, Any],
        threads: int,
        ledgers: Sequence[Path] = (),
    ) -> None:
        self._app, self._run = client_app, Run.create_empty(next(_run_ids))
        self._contexts = {
            node: Context(self._run.run_id, node, {"site-dir": str(folder)}, RecordDict(), dict(run_config))
            for node, folder in enumerate(site_dirs, start=2)
        }
        for context, ledger in zip(self._contexts.values(), ledgers, strict=False):
            context.node_config["privacy-ledger"] = str(ledger)
        self._busy = {node: threading.Lock() for node in self._contexts}
        self._replies: dict[str, Message] = {}
        self._sent: dict[str, Message] = {}
        self._arrived = threading.Condition()
        self._message_ids = itertools.count(1)
        workers = threads or min(len(self._contexts) or 1, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="site", initializer=_one_torch_thread if workers > 1 else None
        )

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What each node knows and remembers, in the order of the site folders."""
        return tuple(self._contexts.values())

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        self._forget_expired()
        for message in messages:
            message_id = f"message-{next(self._message_ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            if message.metadata.dst_node_id in self._contexts:
                pushed.append(message_id)
                with self._arrived:
                    self._sent[message_id] = remove_content_from_message(message)
                self._pool.submit(self._handle, message)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        with self._arrived:
            if not wanted & self._replies.keys():
                self._arrived.wait(LONGEST_PULL_S)
            ready = [name for name in self._sent if name in wanted and name in self._replies]
            for name in ready:
                del self._sent[name]
            return [self._replies.pop(name) for name in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("the round loop pushes and pulls; see server.exchange")

    def close(self, wait: bool = True) -> None:
        """Drop the messages not begun, and by default let the sites finish what they do."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _forget_expired(self) -> None:
        with self._arrived:
            for name in [name for name, message in self._sent.items() if _is_expired(message)]:
                del self._sent[name]
                self._replies.pop(name, None)

    def _handle(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        with self._busy[node]:
            if _is_expired(message):
                return
            try:
                reply = self._app(message, self._contexts[node])
            except Exception as error:
                # As on a real SuperNode, an exception becomes an error reply and the node lives on.
                log.exception("a site's app raised")
                reason = f"{type(error).__name__} in the site's app"
                reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        with self._arrived:
            if message.metadata.message_id in self._sent:
                self._replies[message.metadata.message_id] = reply
                self._arrived.notify_all()


def run_in_process(
    server_app: ServerApp | Callable[[InProcessGrid, Context], Result],
    client_app: ClientApp,
    site_dirs: Sequence[Path | str],
    run_config: dict[str, Any] | None = None,
    threads: int = 1,
    ledgers: Sequence[Path] = (),
) -> Result | None:
    """What the server app returns after running against the sites in this process.

    Args:
        server_app: Flower's ServerApp, or a function of its shape that may return something.
        site_dirs: one data folder a site.
        run_config: Flower's run configuration, seen by both sides.
        threads: sites that work side by side, each on one core; 0 = as many as cores, 1 = one at a time on all cores.
        ledgers: one privacy ledger a site; without them every site keeps it in its folder.
    """
    config = dict(run_config or {})
    grid = InProcessGrid(client_app, site_dirs, config, threads, ledgers)
    with _identity(grid.run.run_id):
        try:
            result = server_app(grid, Context(grid.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), config))
        except BaseException:
            grid.close(wait=False)
            raise
        grid.close()
        return result


@contextmanager
def _identity(run_id: int) -> Iterator[None]:
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 1, run_id, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def _is_expired(message: Message) -> bool:
    return time.time() > message.metadata.created_at + message.metadata.ttl


def _one_torch_thread() -> None:
    torch.set_num_threads(1)
