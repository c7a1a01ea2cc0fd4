"""The coordinator's porter under Flower: read what is to be done, run the rounds, say what came out."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.run import run_federation
from server.run_config import read_task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One federated run; every failure raises, so that the run's final status is `failed`."""
    task = read_task(context.run_config)
    print(run_federation(grid, task.words, f"flower-{context.run_id}", task.home, task.names), flush=True)
