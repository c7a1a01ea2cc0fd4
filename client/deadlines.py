"""How does a wait that cannot be interrupted get a deadline: it is left behind in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


class DeadlinePassed(TimeoutError):
    """Something gave no answer in time; the message names it."""


def within(timeout_s: float, what: str, ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises, if it does so in time.

    A name server or a network disk that does not answer blocks its thread for good; the thread is a daemon, so the
    process can still end.

    Raises:
        DeadlinePassed: nothing came within `timeout_s` seconds.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # raised again below, in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not answers:
        raise DeadlinePassed(f"{what}: no answer within {timeout_s:g} s")
    return answers[0]
