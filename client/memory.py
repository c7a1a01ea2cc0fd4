"""What a site remembers between messages, in Flower's context: the text space, and moments that do not travel.

The context moves with the site when Flower hands the next message to another process, so every process agrees.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Protocol

from flwr.app import ConfigRecord, Context
from numpy.typing import NDArray

from dsm_core.text_space import TextSpace
from strategies.messages import StaleTextSpace, TrainOrder, pack_arrays, unpack_arrays

TEXT = "text"
MOMENTS = "moments"
STAMP = "stamp"
_KEPT_SPACES = 8

_spaces: OrderedDict[str, TextSpace] = OrderedDict()
_lock = threading.Lock()


class Session(Protocol):
    """The part of a training session that remembers."""

    def optimizer_arrays(self) -> dict[str, NDArray]: ...

    def load_optimizer_arrays(self, moments: dict[str, NDArray], steps: int = 0) -> None: ...


def keep_text(context: Context, content: bytes, stated_hash: str) -> str:
    """Keep a text space; returns the hash of its content.

    Raises:
        TextSpaceError: the bytes are corrupted.
        StaleTextSpace: the content has another hash than the server states.
    """
    space = TextSpace.from_bytes(content)
    if space.hash != stated_hash:
        raise StaleTextSpace(f"the server states text space {stated_hash[:12]} and sent {space.hash[:12]}")
    context.state[TEXT] = ConfigRecord({"hash": space.hash, "bytes": content})
    _cache(space)
    return space.hash


def kept_text(context: Context, wanted_hash: str) -> TextSpace:
    """The text space of the run, if this site holds it.

    Raises:
        StaleTextSpace: the site holds none, or another one.
    """
    record = context.state.config_records.get(TEXT)
    held = str(record["hash"]) if record is not None else "none"
    if record is None or held != wanted_hash:
        raise StaleTextSpace(f"this site holds text space {held[:12]}, the server trains with {wanted_hash[:12]}")
    with _lock:
        space = _spaces.get(held)
    if space is None:
        space = TextSpace.from_bytes(bytes(record["bytes"]))  # type: ignore[arg-type]
        _cache(space)
    return space


def recall_moments(context: Context, session: Session, order: TrainOrder) -> None:
    """Give the session the moments that this site ended its last round with; none at the beginning of a run.

    Moments that travel with the tensors are not kept here.
    """
    if order.share_moments:
        return
    record = context.state.config_records.get(STAMP)
    stamp = str(record[STAMP]) if record is not None else ""
    # Optimiser state in the session of another process, or of an earlier run in this one, is not this run's.
    if stamp and stamp == vars(session).get(STAMP):
        return
    moments = unpack_arrays(context.state.array_records[MOMENTS]) if stamp else {}
    session.load_optimizer_arrays(moments, steps=(order.round - 1) * order.local_steps)
    vars(session)[STAMP] = stamp


def keep_moments(context: Context, session: Session, order: TrainOrder) -> None:
    """Keep the session's moments for the next round of this run."""
    vars(session)[STAMP] = stamp = secrets.token_hex(8)
    if not order.share_moments:
        context.state[MOMENTS] = pack_arrays(session.optimizer_arrays())
        context.state[STAMP] = ConfigRecord({STAMP: stamp})


def _cache(space: TextSpace) -> None:
    with _lock:
        _spaces[space.hash] = space
        while len(_spaces) > _KEPT_SPACES:
            _spaces.popitem(last=False)
