"""What does it cost to keep the state of a run after every round? On disk, in processor time, and in waiting.

python -m simulations.benchmarks.state                   both sizes of the model, rounds of one second
python -m simulations.benchmarks.state out=DIR           on the disk of DIR

A round is a pause here: the states are real, written as in a run, and nothing else is timed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dsm_core.classes import ATLAS
from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config
from dsm_core.model import build_model
from dsm_core.stages import MOVING, ORGANS
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace
from server.federation import first_arrays
from server.state_file import SavedState, write_state
from server.state_store import StateStore
from simulations.benchmarks.table import Check, Row, write_benchmark
from strategies.query_fedavg import QueryFedAvg, ServerState

ROUNDS, ROUND_S = 8, 1.0
CLASSES = ("aorta", "kidney", "kidney tumor", "liver", "liver tumor", "pancreas", "pancreas tumor", "spleen", "stomach")
LIMIT_S = 0.3  # what a round may cost beyond training, everything together


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every check holds, 1 when one fails, 2 on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        configs = [compose_config([f"model={name}", *words]) for name in ("tiny", "base")]
    except ConfigError as error:
        print(f"state: {error}", file=sys.stderr)
        return 2
    Path(configs[0].out).mkdir(parents=True, exist_ok=True)
    text = build_text_space((ATLAS[name] for name in CLASSES), configs[0].text)
    rows = [_measure(config, text) for config in configs]
    # `base` wants a GPU and rounds of minutes: what a second of pause hides of it is shown, and promises nothing.
    checks = [Check.at_most("seconds that a round of the tiny model waits", rows[0]["round_waits_s"], LIMIT_S)]
    command = ["python", "-m", "simulations.benchmarks.state", *words]
    print(write_benchmark("state", rows, checks, command=command, config=configs[0], text_encoder=text.encoder))
    return 0 if all(check.ok for check in checks) else 1


def _measure(config: Config, text: TextSpace) -> Row:
    """Medians over the rounds for one size of the model."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, text)
    start = ServerState(first_arrays(model, {}), text.names)
    arrays = QueryFedAvg(config.server, {}).begin_stage(start, MOVING[ORGANS]).arrays
    noise = np.random.default_rng(config.seed)
    arrays = {key: noise.normal(size=array.shape).astype(np.float32) for key, array in arrays.items()}
    saved = SavedState(ServerState(arrays, text.names), {}, text)
    waits, alone, processor = [], [], []
    with tempfile.TemporaryDirectory(dir=config.out, prefix="state-") as folder:
        with StateStore(Path(folder) / "run", config) as store:
            for round in range(1, ROUNDS + 1):
                time.sleep(ROUND_S)
                started = time.perf_counter()
                store.keep(replace(saved, state=replace(saved.state, round=round)))
                waits.append(time.perf_counter() - started)
        for round in range(1, ROUNDS + 1):
            started, used = time.perf_counter(), time.process_time()
            write_state(Path(folder) / "alone", replace(saved, state=replace(saved.state, round=round)), config)
            alone.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
        size = sum(path.stat().st_size for path in (Path(folder) / "alone").glob("round-000001.*"))
    return {
        "model": config.model.name,
        "state_mb": size / 1e6,
        "processor_s": statistics.median(processor),
        "written_in_s": statistics.median(alone),
        "round_waits_s": statistics.median(waits),
    }


if __name__ == "__main__":
    sys.exit(main())
