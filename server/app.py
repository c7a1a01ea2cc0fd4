"""The coordinator's porter under `flwr run`: read the run configuration, run the rounds, say what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.run import run_federation
from server.run_config import NODE_NAMES, read_consortium, read_node_names, read_overrides

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One federated run; every failure raises, so that the run's final status is `failed`."""
    home = read_consortium(context.run_config)
    words = read_overrides(context.run_config)
    done = run_federation(grid, words, f"flower-{context.run_id}", home, _node_names(context))
    print(done, flush=True)


def _node_names(context: Context) -> Callable[[], Mapping[int, str]] | None:
    """Read anew at every call: a site may be registered while the run goes on. None in a simulation."""
    return (lambda: read_node_names(context.run_config)) if context.run_config.get(NODE_NAMES) else None
