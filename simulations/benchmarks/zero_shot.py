"""Is a tumour found that no site has labelled? Leave one class out in turn, on generated sites.

python -m simulations.benchmarks.zero_shot                   three seeds, every class, both text spaces: up to an hour
python -m simulations.benchmarks.zero_shot --quick           one seed, two classes, few steps; minutes
python -m simulations.benchmarks.zero_shot --shapes DIR      tumours of real shape, from a folder of label maps
python -m simulations.benchmarks.zero_shot --bank FILE       saved CLIP embeddings beside the offline encoder

Rows: `unseen` the class was labelled at no site; `labelled` it was, at all (upper bound); `no diffusion` unseen, and
without the prior; `organ mean` the trivial deviation from the mean of each organ; `shuffled text` unseen, asked for by
the name of another lesion; `wrong organ` unseen, asked for in an organ without tumours. Scored on the working grid.
Training is pooled, in all three stages, without the averaging of a federated run.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config
from dsm_core.data.phantoms import PHANTOM_LESIONS
from dsm_core.stages import ORGANS, PRIOR, TUMORS
from dsm_core.text_space import TextSpaceError
from simulations.benchmarks.detection_rows import over_seeds
from simulations.benchmarks.table import Check, Row, write_benchmark
from simulations.benchmarks.zero_shot_scores import LABELLED, NO_DIFFUSION, ORGAN_MEAN, SHUFFLED, UNSEEN, WRONG, measure
from simulations.benchmarks.zero_shot_text import CLIP, OFFLINE, text_space
from simulations.benchmarks.zero_shot_training import Budget, Seed, generated
from simulations.sites import SitesError

BANK = Path("../shared/data/text_space/clip_vit_b32_dsm45.safetensors")
SEEDS = (0, 1, 2)
FULL = Budget({ORGANS: 2000, PRIOR: 1600, TUMORS: 2400}, cases=24, held_out=8)
QUICK = Budget({ORGANS: 700, PRIOR: 700, TUMORS: 1000}, cases=10, held_out=4)
QUICK_CLASSES = ("spleen tumor", "liver tumor")
LEAST_AUROC, LEAST_SHARE = 0.95, 0.6
MEASURES = (
    "auroc_host", "fpr95_host", "auroc_whole", "fpr95_whole", "dice", "nsd", "sensitivity", "fp_ml", "auroc_presence",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One seed with one text space, in a process of its own."""

    config: Config
    encoder: str
    bank: Path | None
    budget: Budget
    classes: tuple[str, ...]
    controls: bool

    @property
    def name(self) -> str:
        return f"seed {self.config.seed}, {self.encoder}"


def run(job: Job) -> list[Row]:
    """Every row of a job; one thread."""
    torch.set_num_threads(1)
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {job.name}: {what}", flush=True)

    seed = Seed(job.config, text_space(job.encoder, job.bank), job.budget, say)
    rows = measure(seed, job.classes, job.controls, say)
    say("done")
    return [{"encoder": job.encoder, "seed": job.config.seed, **row} for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every check holds, 1 when one fails, 2 on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("python -m simulations.benchmarks.zero_shot", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, two classes, few steps")
    parser.add_argument("--shapes", metavar="DIR", help="label maps whose tumours take the place of drawn ones")
    parser.add_argument("--bank", metavar="FILE", type=Path, default=BANK, help="saved CLIP embeddings")
    parser.add_argument("--workers", type=int, default=2, help="seeds side by side, one thread each")
    options, overrides = parser.parse_known_args(words)
    try:
        config = compose_config(overrides)
        jobs = plan(config, options)
        rows = work_off(jobs, options.workers)
    except (ConfigError, SitesError, TextSpaceError) as error:
        print(f"zero_shot: {error}", file=sys.stderr)
        return 2
    ended = len({(row["encoder"], row["seed"]) for row in rows})
    checks = [Check.equal("jobs that ended well", ended, len(jobs)), *promises(rows)]
    table = over_seeds(rows, ("encoder", "class", "method"), MEASURES)
    write_benchmark(
        "zero_shot" if options.shapes is None else "zero_shot_shapes",
        table,
        checks,
        command=["python", "-m", "simulations.benchmarks.zero_shot", *words],
        config=config,
        text_encoder=", ".join(sorted({job.encoder for job in jobs})),
        training="pooled",
        steps=dict(jobs[0].budget.steps),
        cases=jobs[0].budget.cases,
        by_seed=rows,
    )
    return 0 if all(check.ok for check in checks) else 1


def plan(config: Config, options: argparse.Namespace) -> list[Job]:
    """The jobs, dearest first.

    Raises:
        ConfigError: a number of workers that makes no sense.
    """
    if options.workers < 1:
        raise ConfigError(f"--workers wants at least 1, found {options.workers}")
    if options.shapes is not None:
        config = replace(config, phantom=replace(config.phantom, lesion_shapes=options.shapes))
    budget, classes = (QUICK, QUICK_CLASSES) if options.quick else (FULL, PHANTOM_LESIONS)
    seeds = SEEDS[:1] if options.quick else SEEDS
    jobs = [Job(replace(config, seed=seed), OFFLINE, None, budget, classes, controls=True) for seed in seeds]
    if options.bank.is_file():
        # The text only places a lesion in its organ, so one seed without the costly controls says whether it does.
        jobs.append(Job(replace(config, seed=seeds[0]), CLIP, options.bank, budget, classes, controls=False))
    else:
        print(f"no CLIP embeddings at {options.bank}: rows of {CLIP} are left out")
    return jobs


def work_off(jobs: Sequence[Job], workers: int) -> list[Row]:
    """The rows of all jobs that end well, in the order of the jobs.

    Their sites are made first, once for all jobs of a seed.
    """
    for config, budget in {job.config.seed: (job.config, job.budget) for job in jobs}.values():
        print(f"sites of seed {config.seed}", flush=True)
        generated(config, budget)
    found: dict[str, list[Row]] = {}
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run, job): job.name for job in jobs}
        for future in as_completed(waiting):
            try:
                found[waiting[future]] = future.result()
            except Exception:  # an hour's rows of the other jobs are not thrown away for it
                print(f"{waiting[future]} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    return [row for job in jobs for row in found.get(job.name, [])]


def promises(rows: Sequence[Row]) -> list[Check]:
    """What the table has to show; the worst seed and class count."""
    held = {(row["encoder"], row["seed"], row["class"], row["method"]): row for row in rows}
    checks = []
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        unseen = {key: row for key, row in held.items() if key[0] == encoder and key[3] == UNSEEN}
        checks.append(
            Check.at_least(f"{encoder}: unseen AUROC in the host, worst", _least(unseen, "auroc_host"), LEAST_AUROC)
        )

        def against(method: str, measure: str, unseen: dict[Any, Row] = unseen) -> list[tuple[float, float]]:
            others = [(row, held.get((*key[:3], method))) for key, row in unseen.items()]
            return [(row[measure], other[measure]) for row, other in others if other is not None]

        if pairs := against(ORGAN_MEAN, "auroc_host"):
            gain = min(ours - trivial for ours, trivial in pairs)
            checks.append(Check.at_least(f"{encoder}: unseen AUROC above the organ mean's, worst", gain, 1e-9))
        if pairs := against(LABELLED, "dice"):
            share = _share((ours for ours, _ in pairs), (best for _, best in pairs))
            checks.append(Check.at_least(f"{encoder}: unseen Dice, share of labelled", share, LEAST_SHARE))
        for method in (WRONG, SHUFFLED):
            if pairs := against(method, "dice"):
                share = _share((other for _, other in pairs), (ours for ours, _ in pairs))
                checks.append(Check.at_most(f"{encoder}: Dice with {method}, share of unseen", share, 0.2))
        if pairs := against(NO_DIFFUSION, "auroc_host"):
            gain = sum(ours - without for ours, without in pairs) / len(pairs)
            checks.append(Check.at_least(f"{encoder}: mean AUROC that diffusion adds", gain, 0.0))
    return checks


def _share(part: Iterable[float], whole: Iterable[float]) -> float:
    """NaN, which keeps no promise, where the whole is nothing."""
    total = sum(whole)
    return sum(part) / total if total else math.nan


def _least(rows: dict[Any, Row], measure: str) -> float:
    return min((float(row[measure]) for row in rows.values()), default=float("nan"))


if __name__ == "__main__":
    sys.exit(main())
