"""What a site remembers between messages, in Flower's context: the text space, and moments that do not travel.

The context moves with the site when Flower hands the next message to another process, so every process agrees.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Context
from numpy.typing import NDArray

from dsm_core.text_space import TextSpace
from strategies.growth import grow_rows
from strategies.messages import StaleTextSpace, TrainOrder, pack_arrays, unpack_arrays

TEXT = "text"
MOMENTS = "moments"
STAMP = "stamp"
STEPS = "steps"
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
    _fit_moments(context, space)
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
    stamp, steps = _stamp(context)
    # Optimiser state in the session of another process, of an earlier run in this one, or of a round that broke off
    # half way, is not what this run's last round ended with.
    if not stamp or stamp != vars(session).pop(STAMP, None):
        moments = unpack_arrays(context.state.array_records[MOMENTS]) if stamp else {}
        session.load_optimizer_arrays(moments, steps)


def keep_moments(context: Context, session: Session, order: TrainOrder) -> None:
    """Keep the session's moments for the next round of this run."""
    stamp = secrets.token_hex(8)
    if not order.share_moments:
        steps = _stamp(context)[1] + order.local_steps
        context.state[MOMENTS] = pack_arrays(session.optimizer_arrays())
        context.state[STAMP] = ConfigRecord({STAMP: stamp, STEPS: steps})
    vars(session)[STAMP] = stamp


def export_moments(context: Context) -> dict[str, NDArray]:
    """The moments that the site keeps, with the number of steps behind them; empty where it keeps none."""
    stamp, steps = _stamp(context)
    return {STEPS: np.array(steps), **unpack_arrays(context.state.array_records[MOMENTS])} if stamp else {}


def import_moments(context: Context, kept: Mapping[str, NDArray]) -> None:
    """Keep what `export_moments` gave."""
    if kept:
        context.state[MOMENTS] = pack_arrays({key: array for key, array in kept.items() if key != STEPS})
        context.state[STAMP] = ConfigRecord({STAMP: secrets.token_hex(8), STEPS: int(kept[STEPS])})


def _stamp(context: Context) -> tuple[str, int]:
    """Mark of the kept moments and the optimiser steps behind them; an empty mark where none are kept."""
    record = context.state.config_records.get(STAMP)
    return (str(record[STAMP]), int(record[STEPS])) if record is not None else ("", 0)  # type: ignore[arg-type]


def _fit_moments(context: Context, space: TextSpace) -> None:
    """Give kept moments a row for every class that a new text space adds to the one held until now."""
    held = context.state.config_records.get(TEXT)
    if held is None or not _stamp(context)[0]:
        return
    names = TextSpace.from_bytes(bytes(held["bytes"])).names  # type: ignore[arg-type]
    moments = unpack_arrays(context.state.array_records[MOMENTS])
    context.state[MOMENTS] = pack_arrays(grow_rows(moments, names, space.names))


def _cache(space: TextSpace) -> None:
    with _lock:
        _spaces[space.hash] = space
        while len(_spaces) > _KEPT_SPACES:
            _spaces.popitem(last=False)
