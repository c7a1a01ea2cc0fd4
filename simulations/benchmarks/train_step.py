"""What does a training step cost on this machine, by part, and beside MONAI's networks of like size?

python -m simulations.benchmarks.train_step                 32^3, 48^3 and 64^3, batch 2; base with batch 1
python -m simulations.benchmarks.train_step --quick         the checked size only, three rounds
python -m simulations.benchmarks.train_step --variants      what bf16, memory layouts and threads change

One thread. The networks take turns in one process, round by round; a ratio is the median over rounds. Times are
processor times of whole steps (forward, backward, loss, clipping, AdamW) on patches that are already in memory.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import torch
from tqdm import tqdm

from dsm_core.config import ConfigError, ModelConfig
from dsm_core.config_words import compose_config
from dsm_core.model.selective_scan import scan_backend
from simulations.benchmarks.networks import PARTS, DsmStep, MonaiStep, segresnet, swin_unetr
from simulations.benchmarks.step_variants import variant_rows
from simulations.benchmarks.table import Check, Row, write_benchmark
from simulations.benchmarks.workers import Timing, timed

SIZES = (32, 48, 64)
CHECKED = 48
ROUNDS, QUICK_ROUNDS, BASE_ROUNDS = 9, 3, 2
MOST_S, MOST_TIMES = 0.20, 1.3
TINY, NARROW, BASE = "DSM tiny", "DSM narrow", "DSM base"
LIKE_TINY, LIKE_NARROW = "SegResNet like tiny", "SegResNet like narrow"
NARROW_CONFIG = ModelConfig(widths=(16, 32, 48, 64), mamba_blocks=(0, 0, 1, 1))


@dataclass
class Subject:
    """A network at one patch size, and its steps so far."""

    name: str
    step: DsmStep | MonaiStep
    rounds: int
    whole: list[Timing] = field(default_factory=list)
    parts: list[dict[str, Timing]] = field(default_factory=list)

    def take_turn(self) -> None:
        if len(self.whole) == self.rounds:
            return
        self.whole.append(timed(self.step.whole, least_s=0.0))
        if isinstance(self.step, DsmStep):
            self.parts.append(self.step.parts())

    def row(self) -> Row:
        def median(timings: Sequence[Timing], kind: str = "cpu_ms") -> float:
            return statistics.median(getattr(timing, kind) for timing in timings)

        return {
            "patch": f"{self.step.size}^3",
            "batch": self.step.batch,
            "network": self.name,
            "parameters": self.step.parameters,
            "step_ms": median(self.whole),
            "clock_ms": median(self.whole, "wall_ms"),
            **({f"{part}_ms": median([p[part] for p in self.parts]) for part in PARTS} if self.parts else {}),
            "rounds": len(self.whole),
        }


def subjects(size: int, rounds: int, seed: int, with_base: bool) -> list[Subject]:
    """DSM and its peers at one patch size. SwinUNETR halves five times, so 48^3 is no size of it."""
    base = compose_config(["model=base"]).model

    def dsm(name: str, config: ModelConfig, batch: int, rounds: int) -> Subject:
        return Subject(name, DsmStep(config, size, batch, seed), rounds)

    def peer(name: str, network: torch.nn.Module, batch: int, rounds: int) -> Subject:
        return Subject(name, MonaiStep(network, size, batch, seed), rounds)

    found = [
        dsm(TINY, ModelConfig(), 2, rounds),
        dsm(NARROW, NARROW_CONFIG, 2, rounds),
        # More blocks in the deepest stages are the cheapest way to more parameters, so the dearest one for us.
        peer(LIKE_TINY, segresnet(8, (1, 2, 4, 8)), 2, rounds),
        peer(LIKE_NARROW, segresnet(8, (1, 2, 2, 4)), 2, rounds),
    ]
    if size % 32 == 0:
        found.append(peer("SwinUNETR, its smallest", swin_unetr(12), 2, rounds))
    if with_base:
        found += [
            dsm(BASE, base, 1, BASE_ROUNDS),
            peer("SegResNet like base", segresnet(32, (1, 2, 2, 6)), 1, BASE_ROUNDS),
        ]
        if size % 32 == 0:
            found.append(peer("SwinUNETR, next below base", swin_unetr(24), 1, BASE_ROUNDS))
    return found


def measure(size: int, rounds: int, seed: int, with_base: bool) -> list[Subject]:
    """Every network at one patch size, taking turns."""
    found = subjects(size, rounds, seed, with_base)
    for _ in tqdm(range(max(subject.rounds for subject in found)), desc=f"{size}^3", unit="round"):
        for subject in found:
            subject.take_turn()
    return found


def checks(found: Sequence[Subject]) -> list[Check]:
    """The promises at the checked size, for tiny as it is built by default and for one of about 1.2 M parameters."""
    known = {subject.name: subject for subject in found if subject.step.size == CHECKED}
    made = []
    for name, peer in ((TINY, LIKE_TINY), (NARROW, LIKE_NARROW)):
        ours, theirs = known.get(name), known.get(peer)
        seconds = statistics.median(t.cpu_ms for t in ours.whole) / 1e3 if ours else math.nan
        pairs = zip(ours.whole, theirs.whole, strict=False) if ours and theirs else ()
        ratios = [a.cpu_ms / b.cpu_ms for a, b in pairs]
        millions = f"{ours.step.parameters / 1e6:.2f} M" if ours else "-"
        made += [
            Check.at_most(f"{name} ({millions}), whole step at {CHECKED}^3 x 2, s", seconds, MOST_S),
            Check.at_most(f"{name} / {peer}, at {CHECKED}^3 x 2", statistics.median(ratios or [math.nan]), MOST_TIMES),
        ]
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every check holds, 1 when one fails, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="train_step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of dsm-simulate: seed, out")
    parser.add_argument("--rounds", "--repeats", type=int, default=ROUNDS, help="steps of each network")
    parser.add_argument("--quick", action="store_true", help=f"{CHECKED}^3 without base, {QUICK_ROUNDS} rounds")
    parser.add_argument("--variants", action="store_true", help=f"instead: variants of tiny's step at {CHECKED}^3")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    try:
        config = compose_config(options.overrides)
        if options.rounds < 1:
            raise ConfigError(f"--rounds wants at least 1, found {options.rounds}")
    except ConfigError as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    rounds = QUICK_ROUNDS if options.quick else options.rounds
    if options.variants:
        name, rows, made = "train_step_variants", variant_rows(CHECKED, rounds, config.seed), []
    else:
        sizes = (CHECKED,) if options.quick else SIZES
        found = [s for size in sizes for s in measure(size, rounds, config.seed, with_base=not options.quick)]
        name, rows, made = "train_step", [subject.row() for subject in found], checks(found)
    path = write_benchmark(
        name,
        rows,
        made,
        command=["python", "-m", "simulations.benchmarks.train_step", *words],
        config=config,
        text_encoder="hashed words (deterministic, not CLIP)",
        date=f"{date.today()}",
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        scan_backend=scan_backend("cpu"),
    )
    print(path)
    return 0 if all(check.ok for check in made) else 1


if __name__ == "__main__":
    sys.exit(main())
