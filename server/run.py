"""One federated run under Flower, from its overrides to its checkpoint: begun, or gone on with after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

from dsm_core.config_words import compose_config
from server.banks import BANKS, Banks
from server.federation import open_federation
from server.record import RunRecord, rewind_history
from server.resume import forget_state, recall_config, remember_config, state_folder
from server.state_store import StateStore
from server.trail import Trail
from server.waiting import Waiting

# A deployed run whose command was killed goes on by itself until it is resumed; it is told to end, and this long it may
# take: Flower's apps hear of it with a heartbeat, or with their next call.
LAST_WORDS_S = 90.0


def run_federation(
    grid: Grid,
    words: Sequence[str],
    name: str,
    home: Path | None = None,
    names: Callable[[], Mapping[int, str]] | None = None,
) -> str:
    """Run all rounds that the overrides ask for; what was done, in a line.

    Args:
        words: overrides of the configuration; with `resume=RUN_DIR` among them, that run goes on.
        name: of the run; also of its folder, where the overrides give none.
        home: the consortium's folder, which gets an audit log and the text space; None in a simulation.
        names: see `open_federation`.

    Raises:
        ConfigError: a key, a value or a folder that cannot be used.
        StateError: a state that cannot be written, or none that can be gone on from.
        FederationError: too few sites, contracts that contradict each other, or a round below quorum.
    """
    config = compose_config(words)
    if config.resume:
        config, folder = recall_config(words)
        record = RunRecord(folder)
    else:
        record = RunRecord.create(config.out, config.name or name)
        remember_config(record.folder, config)
    trail = Trail(home, name)
    waiting = Waiting(record.folder, record.method, say=partial(print, flush=True))
    states = StateStore(state_folder(record.folder, record.method), config, LAST_WORDS_S if home else 0.0)
    with trail.failures(), waiting, states as store:
        saved = store.latest()
        rewind_history(record.folder, record.method, saved.state.round if saved else 0)
        publish = partial(Banks(home / BANKS).put, config=config.text) if home is not None else (lambda text: None)
        federation = open_federation(
            grid, config, config.sites, saved=saved, waiting=waiting, names=names, publish=publish
        )
        trail.begin(federation)
        state = federation.run(grid, trail.each(record.add_round), saved.state if saved else None, store, waiting)
        record.save(federation, state)
    forget_state(record.folder)
    waiting.end("finished")
    return f"{state.round} rounds done with {', '.join(federation.nodes)}; results in {record.folder}"
