"""The coordinator's porter under `flwr run`: read the run configuration, run the rounds, save what came out."""

from __future__ import annotations

import shlex

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.run import run_federation

OVERRIDES = "overrides"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One federated run; every failure raises, so that the run's final status is `failed`."""
    words = shlex.split(str(context.run_config.get(OVERRIDES, "")))
    print(run_federation(grid, words, f"flower-{context.run_id}"), flush=True)
