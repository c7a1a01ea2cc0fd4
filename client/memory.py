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
STAGE = "stage"
STEPS = "steps"
_STEPS_OF = "steps of "  # and the stage: how the number of steps is named beside exported moments
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
    """Give the session the moments that this site ended its last round with; none at the beginning of a stage.

    Moments that travel with the tensors are not kept here.
    """
    if order.share_moments:
        return
    stamp, stage, steps = _stamp(context)
    if stage != order.stage:
        stamp, steps = "", 0
    # Optimiser state in the session of another process, of an earlier run in this one, or of a round that broke off
    # half way, is not what this run's last round ended with.
    if not stamp or stamp != vars(session).pop(STAMP, None):
        moments = unpack_arrays(context.state.array_records[MOMENTS]) if stamp else {}
        session.load_optimizer_arrays(moments, steps)


def keep_moments(context: Context, session: Session, order: TrainOrder) -> None:
    """Keep the session's moments for the next round of this stage."""
    stamp = secrets.token_hex(8)
    if not order.share_moments:
        _, stage, steps = _stamp(context)
        context.state[MOMENTS] = pack_arrays(session.optimizer_arrays())
        _mark(context, stamp, order.stage, (steps if stage == order.stage else 0) + order.local_steps)
    vars(session)[STAMP] = stamp


def export_moments(context: Context) -> dict[str, NDArray]:
    """The moments that the site keeps, with the steps of their stage behind them; empty where it keeps none."""
    stamp, stage, steps = _stamp(context)
    kept = {_STEPS_OF + stage: np.array(steps)} if stamp else {}
    return kept | (unpack_arrays(context.state.array_records[MOMENTS]) if stamp else {})


def import_moments(context: Context, kept: Mapping[str, NDArray]) -> None:
    """Keep what `export_moments` gave."""
    for key in kept:
        if key.startswith(_STEPS_OF):
            context.state[MOMENTS] = pack_arrays({name: array for name, array in kept.items() if name != key})
            _mark(context, secrets.token_hex(8), key.removeprefix(_STEPS_OF), int(kept[key]))


def _mark(context: Context, stamp: str, stage: str, steps: int) -> None:
    context.state[STAMP] = ConfigRecord({STAMP: stamp, STAGE: stage, STEPS: steps})


def _stamp(context: Context) -> tuple[str, str, int]:
    """Mark of the kept moments, their stage, and its optimiser steps behind them; an empty mark where none are kept."""
    record = context.state.config_records.get(STAMP)
    return ("", "", 0) if record is None else (str(record[STAMP]), str(record[STAGE]), int(record[STEPS]))  # type: ignore[arg-type]


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
