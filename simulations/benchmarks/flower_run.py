"""Does `flwr run` give the same model as the in-process grid? The same two apps, sites, seed and overrides, twice.

python -m simulations.benchmarks.flower_run                      two generated sites, a round of each stage
python -m simulations.benchmarks.flower_run rounds=5 sites=4     any key of dsm-simulate
python -m simulations.benchmarks.flower_run sites_dir=DIR        sites of one's own

Start it in the repository root: `flwr run .` bundles the apps from there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from client.app import app as client_app
from client.whereabouts import SITES_DIR
from dsm_core.checkpoint import Checkpoint, load_checkpoint
from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config
from dsm_core.data import DatalistError, site_folders
from dsm_core.model import build_model
from dsm_core.stages import total_rounds
from dsm_core.text_space import TextSpaceError
from server.app import app as server_app
from server.exchange import FederationError
from server.run_config import OVERRIDES
from simulations.benchmarks.superlink import FlowerFault, SuperLink, open_superlink, processes_of
from simulations.benchmarks.table import Check, Row, write_benchmark
from simulations.grid import run_in_process
from simulations.sites import generate_sites
from strategies.averaging import CLASS_ROWS

DEFAULTS = (
    "rounds=1",
    "prior.rounds=1",
    "tumors.rounds=1",
    "sites=2",
    "train.local_steps=2",
    "phantom.cases=2",
    "phantom.held_out=1",
)
TOLERANCE = 1e-6  # one thread on both sides: the same operations in the same order
COMPLETED = "finished:completed"
POLL_S = 3.0
IN_PROCESS, FLOWER = "in_process", "flower"


@dataclass(frozen=True)
class Outcome:
    """What one of the two runs left."""

    checkpoint: Checkpoint
    losses: list[float]
    seconds: float

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.checkpoint.model.state_dict()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every check holds, 1 when one fails, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="flower_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of dsm-simulate")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="longest wait for the run under Flower")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    try:
        config = compose_config([*DEFAULTS, *options.overrides])
        _check_start(options.overrides)
        # Ray's and Flower's processes inherit it; sums in another number of threads differ in the last bits.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(prefix="dsm-", ignore_cleanup_errors=True) as folder:
            work = Path(folder).resolve()
            root = _sites(config, work)
            keys = [f"sites={len(site_folders(root))}", f"out={work}"]
            run_config = {SITES_DIR: str(root), OVERRIDES: shlex.join([*DEFAULTS, *options.overrides, *keys])}
            expected = _run_in_process(run_config, root, work)
            found, status = _run_under_flower(run_config, config, work, options.timeout_s)
            left = len(processes_of(work / "home"))
    except (ConfigError, DatalistError, TextSpaceError, FederationError) as error:
        print(f"flower_run: {error}", file=sys.stderr)
        return 2
    rows, checks = _compare(config, expected, found)
    path = write_benchmark(
        "flower_run",
        rows,
        [
            Check.equal("final status by flwr ls", status, COMPLETED),
            *checks,
            Check.equal("processes of the run left", left, 0),
        ],
        command=["python", "-m", "simulations.benchmarks.flower_run", *words],
        config=config,
        text_encoder=expected.checkpoint.text.encoder,
        tolerance=TOLERANCE,
        seconds={"in_process": expected.seconds, "flwr_run": found.seconds if found else None},
    )
    print(path)
    return 0 if found and left == 0 and all(check.ok for check in checks) else 1


def _check_start(overrides: Sequence[str]) -> None:
    if not all(Path(name).is_file() for name in ("pyproject.toml", "server/app.py", "client/app.py")):
        raise ConfigError("start this benchmark in the repository root, where pyproject.toml names the apps")
    if set('"\\') & set("".join(overrides)):
        raise ConfigError('overrides travel inside double quotes here; leave " and \\ out of them')


def _sites(config: Config, work: Path) -> Path:
    if config.sites_dir is None:
        print(f"generating {config.sites} sites", flush=True)
        return generate_sites(work / "sites", config.sites, config.phantom, config.seed).root
    root = Path(config.sites_dir).resolve()
    if not site_folders(root):
        raise ConfigError(f"sites_dir={config.sites_dir} holds no site: no sub-folder has a dataset.json")
    return root


def _run_in_process(run_config: dict[str, str], root: Path, work: Path) -> Outcome:
    started = time.monotonic()
    named = {**run_config, OVERRIDES: f"{run_config[OVERRIDES]} name={IN_PROCESS}"}
    run_in_process(server_app, client_app, site_folders(root), named, threads=1)
    return _outcome(work / IN_PROCESS, time.monotonic() - started)


def _run_under_flower(
    run_config: dict[str, str], config: Config, work: Path, timeout_s: float
) -> tuple[Outcome | None, str]:
    """What the run left, None unless it completed, and its final status."""
    started = time.monotonic()
    named = {**run_config, OVERRIDES: f"{run_config[OVERRIDES]} name={FLOWER}"}
    federation = f"num-supernodes={len(site_folders(run_config[SITES_DIR]))} client-resources-num-cpus=1"
    line = " ".join(f'{key}="{value}"' for key, value in named.items())
    try:
        with open_superlink(work / "home") as superlink:
            said = superlink.flwr("run", ".", "local", "--federation-config", federation, "--run-config", line)
            status, details = _await_end(superlink, said["run-id"], work / FLOWER, total_rounds(config), timeout_s)
            if status != COMPLETED:
                log = superlink.flwr_text("log", said["run-id"], "local", "--show")
                print(f"{log[-3000:]}\nflower_run: {status}: {details}", file=sys.stderr)
                return None, status
    except FlowerFault as fault:
        print(f"flower_run: {fault}", file=sys.stderr)
        return None, "none"
    return _outcome(work / FLOWER, time.monotonic() - started), status


def _await_end(superlink: SuperLink, run_id: str, folder: Path, rounds: int, timeout_s: float) -> tuple[str, str]:
    """Final status and details of a run; a run over its deadline is stopped and named."""
    deadline = time.monotonic() + timeout_s
    status, details = "not yet known", ""
    with tqdm(total=rounds, desc="flwr run", unit="round") as bar:
        while True:
            try:
                status, details = superlink.run_status(run_id)
            except FlowerFault as fault:  # a busy machine may be late with one answer; the run goes on
                bar.write(f"{fault}")
            bar.update(len(_losses(folder)) - bar.n)
            bar.set_postfix(status=status)
            if status.startswith("finished"):
                return status, details
            if time.monotonic() > deadline:
                raise FlowerFault(f"run {run_id} was {status} after {bar.n} of {rounds} rounds and {timeout_s:g} s")
            time.sleep(POLL_S)


def _losses(folder: Path) -> list[float]:
    path = folder / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("\n")]


def _outcome(folder: Path, seconds: float) -> Outcome:
    return Outcome(load_checkpoint(folder / "checkpoints" / "last"), _losses(folder), seconds)


def _compare(config: Config, expected: Outcome, found: Outcome | None) -> tuple[list[Row], list[Check]]:
    """A row for each tensor of class rows and one for all shared tensors; what must hold between the two runs."""
    if found is None:
        return [], []
    torch.manual_seed(config.seed)
    first = build_model(config.model, expected.checkpoint.text).state_dict()
    names = sorted(expected.tensors)
    shared = [name for name in names if not name.startswith(CLASS_ROWS)]
    groups = {name: [name] for name in names if name.startswith(CLASS_ROWS)} | {f"{len(shared)} shared": shared}
    rows: list[Row] = [
        {
            "tensors": group,
            "numbers": sum(expected.tensors[name].numel() for name in members),
            "moved_by_training": _furthest(expected.tensors, first, members),
            "max_abs_difference": _furthest(expected.tensors, found.tensors, members),
        }
        for group, members in groups.items()
    ]
    class_rows = [name for name in names if name.startswith(CLASS_ROWS)]
    losses = max(abs(a - b) for a, b in zip(expected.losses, found.losses, strict=False))
    return rows, [
        Check.equal("rounds", len(found.losses), total_rounds(config)),
        Check.equal("text space", found.checkpoint.text.hash[:12], expected.checkpoint.text.hash[:12]),
        Check.at_most(
            "class rows, max abs difference", _furthest(expected.tensors, found.tensors, class_rows), TOLERANCE
        ),
        Check.at_most("all tensors, max abs difference", _furthest(expected.tensors, found.tensors, names), TOLERANCE),
        Check.at_most("loss of a round, max abs difference", losses, TOLERANCE),
        Check.at_least("shared tensors moved by training", _furthest(expected.tensors, first, shared), 1e3 * TOLERANCE),
    ]


def _furthest(one: dict[str, Tensor], other: dict[str, Tensor], names: Sequence[str]) -> float:
    """Largest absolute difference over the named tensors; NaN where any value is."""
    return torch.stack([(one[name].double() - other[name].double()).abs().max() for name in names]).max().item()


if __name__ == "__main__":
    sys.exit(main())
