"""One federated run in process, begun or gone on with: every round is logged, and its state kept in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from client.app import app as client_app
from dsm_core.classes import ClassInfo
from dsm_core.config import Config
from dsm_core.stages import total_rounds
from server.federation import Federation, open_federation
from server.record import rewind_history
from server.resume import state_folder
from server.state_store import StateStore
from server.waiting import Waiting
from simulations.best import BestRound
from simulations.grid import InProcessGrid, run_in_process
from simulations.ledgers import open_ledgers, read_spending
from simulations.results import RunFolder
from simulations.site_memory import kept_moments, restore_moments
from simulations.site_sources import Sites
from strategies.query_fedavg import ServerState


def federate(
    config: Config, method: str, sites: Sites, classes: Sequence[ClassInfo], folder: RunFolder
) -> tuple[Federation, ServerState, ServerState]:
    """Run the rounds of one method in process; returns the last state, and of the last stage that of lowest loss.

    A method whose states lie in the run folder goes on from the last of them.
    """

    def serve(grid: InProcessGrid, context: Any) -> tuple[Federation, ServerState]:
        federation = open_federation(grid, config, len(sites.folders), classes, saved=saved)
        if saved is not None:
            restore_moments(grid.contexts, saved.further)

        def on_round(round: int, record: dict[str, Any], state: ServerState) -> None:
            best.see(record, state)
            _log_round(folder, method, record, bar)

        def further(state: ServerState) -> dict[str, dict[str, NDArray]]:
            return best.further(state) | kept_moments(grid.contexts)

        start = saved.state if saved else None
        return federation, federation.run(grid, on_round, start, store, waiting, further)

    with StateStore(state_folder(folder.path, method), config) as store:
        saved = store.latest()
        best, done = BestRound.of(saved), saved.state.round if saved else 0
        rewind_history(folder.path, method, done)
        bar = tqdm(total=total_rounds(config), desc=method, unit="round", initial=done)
        with bar, Waiting(folder.path, method, say=bar.write) as waiting:
            ledgers = open_ledgers(folder.path / "ledgers" / method, sites.folders, config.privacy)
            result = run_in_process(serve, client_app, list(sites.folders.values()), {}, config.threads, ledgers)
    assert result is not None
    if ledgers:
        asked = {key: getattr(config.privacy, key) for key in ("epsilon", "clip_norm", "trained")}
        folder.write_run_info(privacy={"asked": asked, method: read_spending(sites.folders, ledgers)})
    federation, state = result
    return federation, state, best.state or state


def _log_round(folder: RunFolder, method: str, record: Mapping[str, Any], bar: tqdm) -> None:
    refused = [{"site": site, "reason": reason} for site, reason in {**record["refused"], **record["failed"]}.items()]
    folder.log_round(method, {**record, "refused": refused})
    bar.set_postfix(stage=record["stage"], loss="none" if record["loss"] is None else f"{record['loss']:.3f}")
    bar.update()
    for one in refused:
        bar.write(f"round {record['round']}: {one['site']}: {one['reason']}")
