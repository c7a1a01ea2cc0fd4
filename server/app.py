"""The coordinator's porter under `flwr run`: read the run configuration, run the rounds, save what came out."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dsm_core.config import compose_config
from server.banks import BANKS, Banks
from server.federation import open_federation
from server.record import RunRecord
from server.run_config import read_consortium, read_node_names, read_overrides
from server.trail import Trail

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One federated run of `config.sites` sites; every failure raises, so that the run's final status is `failed`."""
    config = compose_config(read_overrides(context.run_config))
    record = RunRecord.create(config.out, config.name or f"flower-{context.run_id}")
    home = read_consortium(context.run_config)
    trail = Trail(home, f"{context.run_id}")
    with trail.failures():
        federation = open_federation(grid, config, config.sites, names=read_node_names(context.run_config))
        if home:
            Banks(home / BANKS).put(federation.text, config.text)
        trail.begin(federation)
        state = federation.run(grid, on_round=trail.each(record.add_round))
    record.save(federation, state)
    print(f"{state.round} rounds done with {', '.join(federation.nodes)}; results in {record.folder}", flush=True)
