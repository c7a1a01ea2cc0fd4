"""What does a round cost in deployment beside the same round in process, and what of it is Flower's?

python -m simulations.benchmarks.deployment                     three generated sites, four rounds
python -m simulations.benchmarks.deployment rounds=8 sites=2    any key of dsm-simulate

Both runs have the same sites, seed and orders. In deployment a SuperLink, and a SuperNode a site, run on loopback with
TLS and authentication, as our own commands start them. A deployed round is taken apart from what the run's history
tells of each site: training, the rest of a site's answer, and the coordinator's own part. Of the rest of an answer, the
start of a Python process and the opening of the site's data are measured alone, as many side by side as there are
sites; what then remains is Flower's transport and polling.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.app import app as client_app
from dsm_core.checkpoint import Checkpoint, load_checkpoint
from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config
from server.app import app as server_app
from server.exchange import FederationError
from server.run_config import OVERRIDES
from simulations.benchmarks.consortium import open_consortium
from simulations.benchmarks.table import Check, Row, write_benchmark
from simulations.grid import run_in_process
from simulations.sites import generate_sites
from strategies.deployment.errors import DeploymentError

DEFAULTS = (
    *("rounds=4", "sites=3", "train.local_steps=2", "train.batch=1", "data.patch=[32,32,32]"),
    *("phantom.cases=2", "phantom.held_out=1"),
)
TOLERANCE = 1e-5  # sums of the sites' tensors in order of arrival, carried on by AdamW
MOST_OVERHEAD_S = 30.0  # of a deployed round on two cores, with three processes that each import PyTorch
# What a process for one message does before it trains: the app, and what opens the site's session.
_STARTS = "import client.app, client.trainer, dsm_core.data, dsm_core.model"
_OPENS = """
import sys, time
from pathlib import Path
import client.app, client.trainer, dsm_core.data, dsm_core.model
from client.training import site_session
from dsm_core.checkpoint import load_checkpoint
from dsm_core.config_words import compose_config
text, config = load_checkpoint(Path(sys.argv[1])).text, compose_config(sys.argv[3:])
started = time.monotonic()
site_session(sys.argv[2], config, text)
print(time.monotonic() - started)
"""
History = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every check holds, 1 when one fails, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="deployment", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of dsm-simulate")
    words = list(sys.argv[1:] if arguments is None else arguments)
    keys = [*DEFAULTS, *parser.parse_args(words).overrides]
    # Every process of the deployment inherits it: as many sites side by side as in process, a thread each.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    try:
        config = compose_config(keys)
        with tempfile.TemporaryDirectory(prefix="dsm-", ignore_cleanup_errors=True) as folder:
            work = Path(folder).resolve()
            sites = generate_sites(work / "sites", config.sites, config.phantom, config.seed).folders
            in_process = _run_in_process(keys, list(sites.values()), work)
            with open_consortium(work, sites) as consortium:
                deployed = consortium.train(*keys, "name=deployed")
            starts_s = _side_by_side([[sys.executable, "-c", _STARTS]] * len(sites))[0]
            checkpoint = f"{in_process / 'checkpoints' / 'last'}"
            opening = [[sys.executable, "-c", _OPENS, checkpoint, f"{site}", *keys] for site in sites.values()]
            opens_s = max(float(said) for said in _side_by_side(opening)[1])
            rows = _rows(_history(in_process), _history(deployed), starts_s, opens_s)
            pair = [load_checkpoint(run / "checkpoints" / "last") for run in (in_process, deployed)]
    except (ConfigError, FederationError, DeploymentError) as error:
        print(f"deployment: {error}", file=sys.stderr)
        return 2
    checks = _checks(config, rows, *pair)
    path = write_benchmark(
        "deployment",
        rows,
        checks,
        command=["python", "-m", "simulations.benchmarks.deployment", *words],
        config=config,
        text_encoder=pair[0].text.encoder,
        load_at_start=load,
        cores=os.cpu_count(),
    )
    print(path)
    return 0 if all(check.ok for check in checks) else 1


def _run_in_process(keys: Sequence[str], sites: Sequence[Path], work: Path) -> Path:
    words = shlex.join([*keys, f"out={work}", "name=in_process"])
    run_in_process(server_app, client_app, sites, {OVERRIDES: words}, threads=min(len(sites), os.cpu_count() or 1))
    return work / "in_process"


def _history(run: Path) -> History:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def _side_by_side(commands: Sequence[Sequence[str]]) -> tuple[float, list[str]]:
    """Seconds until all of these commands have ended, and what each printed.

    Raises:
        DeploymentError: one failed.
    """
    started = time.monotonic()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[0] for process in running]
    if failed := [process.returncode for process in running if process.returncode]:
        raise DeploymentError(f"{len(failed)} of {len(running)} measured processes ended with {failed[0]}")
    return time.monotonic() - started, said


def _rows(in_process: History, deployed: History, starts_s: float, opens_s: float) -> list[Row]:
    """Seconds of a round, median over the rounds after the first, in which a process opens its data once."""
    whole = {"in process": in_process, "deployed": deployed}
    rows: list[Row] = [
        {
            "part": f"a round {how}",
            "seconds": _median(record["seconds"] for record in history[1:]),
            "first_round_s": history[0]["seconds"],
        }
        for how, history in whole.items()
    ]
    training = _median(max(record["site_seconds"].values()) for record in deployed[1:])
    answers = _median(max(record["answer_seconds"].values()) for record in deployed[1:])
    round_s = rows[1]["seconds"]
    parts = {
        "of it: training at the slowest site": training,
        "of it: processes start, as many as sites": starts_s,
        "of it: data and model are opened anew": opens_s,
        "of it: Flower's transport and polling": answers - training - starts_s - opens_s,
        "of it: the coordinator's averaging and record": round_s - answers,
    }
    return rows + [{"part": part, "seconds": seconds, "share": seconds / round_s} for part, seconds in parts.items()]


def _median(values: Any) -> float:
    return float(statistics.median(values))


def _checks(config: Config, rows: Sequence[Row], in_process: Checkpoint, deployed: Checkpoint) -> list[Check]:
    found: list[dict[str, Tensor]] = [checkpoint.model.state_dict() for checkpoint in (in_process, deployed)]
    apart = max(float((found[0][name].double() - found[1][name].double()).abs().max()) for name in found[0])
    return [
        Check.equal("rounds of the deployed run", deployed.extra["round"], config.rounds),
        Check.at_most("tensors, in process against deployed, max abs difference", apart, TOLERANCE),
        Check.at_most(
            "seconds that deployment adds to a round", rows[1]["seconds"] - rows[0]["seconds"], MOST_OVERHEAD_S
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
