"""What does a private training step cost? Ours beside an open step and Opacus' own ways, in one run.

    python -m simulations.benchmarks.dp_step [--quick] [--batch 2] [--patches 1] [--size 48] [--threads 1]

Every method takes the same patches of as many patients through the same model, from forward pass to AdamW. Times are
medians of steps that take turns; memory is the peak above what was resident before the first step, in a process of its
own. CPU time is what the checks compare: with one thread other work on the machine does not enter it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.privacy.gradients import PatientGradients
from client.privacy.mechanism import GaussianSum
from client.privacy.noise import SecretStream
from client.privacy.private_training import public_batch
from client.trainer import Trainer
from dsm_core.classes import describe_class
from dsm_core.config import Config, ModelConfig, TextConfig, TrainConfig
from dsm_core.data import PatchBatch
from dsm_core.model import build_model
from dsm_core.text_space import build_text_space
from simulations.benchmarks.limits import peak_mb, reset_peak_mb
from simulations.benchmarks.table import Check, write_benchmark

CLASSES = ("kidney", "liver", "liver tumor", "spleen")
OPEN, OURS = "open", "private"
CLIP_NORM = 1.0
SLOWER_AT_MOST, LARGER_AT_MOST = 1.6, 3.0  # a private step against an open one
_LONGEST_S = 60.0  # a method that took as long in all takes no further turns


@dataclass(frozen=True)
class Work:
    """What a step works on: `patients` with `patches` each, cubes of `size` voxels."""

    patients: int
    patches: int
    size: int
    model: ModelConfig

    def trainer(self) -> Trainer:
        text = build_text_space([describe_class(name) for name in CLASSES], TextConfig(encoder="offline"))
        torch.manual_seed(0)
        model = build_model(self.model, text)
        model.class_rows.evidence[:] = 1.0
        return Trainer(model.train(), text, TrainConfig(clip_norm=CLIP_NORM), labelled=CLASSES)

    def batch(self) -> PatchBatch:
        return public_batch(CLASSES, self.patients * self.patches, (self.size,) * 3)


Step = Callable[[], None]


def open_step(work: Work, noise: float) -> tuple[Trainer, Step]:
    """No privacy; `noise` is not used."""
    trainer, batch = work.trainer(), work.batch()

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.losses(batch, _seeded())[0].mean().backward()
        trainer.step_with_gradients(CLIP_NORM)

    return trainer, step


def private_step(work: Work, noise: float) -> tuple[Trainer, Step]:
    """As `client.privacy.private_training` does it."""
    trainer, batch = work.trainer(), work.batch()
    total = GaussianSum(trainer.model.parameters(), CLIP_NORM, noise, SecretStream())

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        with PatientGradients(trainer.model) as watched:
            total.add(watched.backward(trainer.losses(batch, _seeded())[0], work.patches))
        total.release(work.patients)
        trainer.step_with_gradients()

    return trainer, step


def opacus_step(work: Work, noise: float, force_functorch: bool = False) -> tuple[Trainer, Step]:
    """Opacus' hooks and optimiser, a patch at a time; patches of a patient are averaged before clipping."""
    trainer, batch = work.trainer(), work.batch()
    sampled = GradSampleModule(trainer.model, loss_reduction="sum", force_functorch=force_functorch)
    optimizer = DPOptimizer(
        trainer.optimizer, noise_multiplier=noise, max_grad_norm=CLIP_NORM, expected_batch_size=work.patients
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        trainer.losses(batch, _seeded())[0].sum().backward()
        for parameter in sampled.parameters():
            if work.patches > 1:
                parameter.grad_sample = parameter.grad_sample.unflatten(0, (-1, work.patches)).mean(1)
        optimizer.pre_step()
        trainer.step_with_gradients()

    return trainer, step


class _Ghost(GradSampleModuleFastGradientClipping):
    """Opacus' Linear norms know two or three axes; ours have five, tokens of a volume."""

    @staticmethod
    def _linear(layer: nn.Linear, inputs: list[Tensor], gradients: Tensor) -> dict[nn.Parameter, Tensor]:
        stock = GradSampleModuleFastGradientClipping.NORM_SAMPLERS[nn.Linear]
        return stock(layer, [inputs[0].flatten(1, -2)], gradients.flatten(1, -2))

    NORM_SAMPLERS = {**GradSampleModuleFastGradientClipping.NORM_SAMPLERS, nn.Linear: _linear}  # noqa: RUF012


def ghost_step(work: Work, noise: float, use_ghost_clipping: bool = True) -> tuple[Trainer, Step]:
    """Opacus' ghost clipping: norms in one backward pass, the clipped sum in a second. Knows patches only."""
    if work.patches > 1:
        raise ValueError("ghost clipping cannot average a patient's patches before clipping")
    trainer, batch = work.trainer(), work.batch()
    ghost = _Ghost(trainer.model, loss_reduction="sum", max_grad_norm=CLIP_NORM, use_ghost_clipping=use_ghost_clipping)

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        losses = trainer.losses(batch, _seeded())[0]
        ghost.enable_hooks()
        losses.sum().backward(retain_graph=True)
        factors = ghost.get_clipping_coef()
        trainer.optimizer.zero_grad(set_to_none=True)
        ghost.disable_hooks()
        (factors * losses).sum().backward()
        for parameter in trainer.model.parameters():
            assert parameter.grad is not None
            parameter.grad.add_(torch.randn_like(parameter), alpha=noise * CLIP_NORM).div_(work.patients)
        trainer.step_with_gradients()
        ghost.enable_hooks()

    return trainer, step


METHODS: dict[str, Callable[[Work, float], tuple[Trainer, Step]]] = {
    OPEN: open_step,
    OURS: private_step,
    "opacus hooks": opacus_step,
    "opacus functorch": lambda work, noise: opacus_step(work, noise, force_functorch=True),
    "opacus ghost": ghost_step,
    "opacus fast clipping": lambda work, noise: ghost_step(work, noise, use_ghost_clipping=False),
}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def measure_times(work: Work, repeats: int) -> list[dict[str, object]]:
    """A row a method: CPU and wall time of a step in ms, or why it cannot be taken."""
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, object]] = {}
    for method, make in METHODS.items():
        rows[method] = {"method": method}
        try:
            _, steps[method] = make(work, 1.0)
            steps[method]()
        except Exception as error:
            steps.pop(method, None)
            rows[method]["note"] = f"{type(error).__name__}: {error}".splitlines()[0][:90]
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in steps}
    for _ in range(repeats):
        for method, step in steps.items():
            if sum(wall for _, wall in times[method]) < _LONGEST_S:
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                times[method].append((time.process_time() - cpu, time.perf_counter() - wall))
    for method, taken in times.items():
        cpu_ms, wall_ms = (1e3 * statistics.median(column) for column in zip(*taken, strict=True))
        rows[method] |= {"cpu_ms": cpu_ms, "wall_ms": wall_ms, "steps": len(taken)}
    for row in rows.values():
        if "cpu_ms" in row:
            row["times"] = row["cpu_ms"] / rows[OPEN]["cpu_ms"]  # type: ignore[operator]
    return list(rows.values())


def measure_memory(method: str, work: Work) -> float:
    """Peak above what was resident before the first step, in MB; best called in a fresh process."""
    small = Work(work.patients, work.patches, 16, work.model)
    METHODS[method](small, 1.0)[1]()  # libraries and their workspaces
    _, step = METHODS[method](work, 1.0)
    before = reset_peak_mb()
    for _ in range(2):
        step()
    return peak_mb() - before


def _memory_in_process(method: str, arguments: argparse.Namespace) -> float | None:
    command = [sys.executable, "-m", "simulations.benchmarks.dp_step", "--memory-of", method]
    for name in ("batch", "patches", "size", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if outcome.returncode else float(json.loads(outcome.stdout.splitlines()[-1]))


def main() -> int:
    """Print the table, write `runs/benchmarks/dp_step.json`; 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="patients of a step")
    parser.add_argument("--patches", type=int, default=1, help="patches of a patient")
    parser.add_argument("--size", type=int, default=48, help="voxels along each side of a patch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="patches of 32 and three turns: does it run?")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.repeats = 32, 3
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    config = Config()
    work = Work(arguments.batch, arguments.patches, arguments.size, config.model)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, work)))
        return 0
    rows = measure_times(work, arguments.repeats)
    for row in rows:
        if "cpu_ms" in row:
            row["extra_mb"] = _memory_in_process(str(row["method"]), arguments)
    found = {row["method"]: row for row in rows}
    memory = found[OURS]["extra_mb"] / found[OPEN]["extra_mb"]  # type: ignore[operator]
    checks = [
        Check.at_most("private step / open step, CPU time", found[OURS]["times"], SLOWER_AT_MOST),  # type: ignore[arg-type]
        Check.at_most("private step / open step, memory", memory, LARGER_AT_MOST),
    ]
    facts = {name: getattr(arguments, name) for name in ("batch", "patches", "size", "repeats", "threads", "quick")}
    parameters = sum(parameter.numel() for parameter in work.trainer().model.parameters())
    encoder = work.trainer().text.encoder
    write_benchmark(
        "dp_step", rows, checks, command=sys.argv, config=config, text_encoder=encoder, parameters=parameters, **facts
    )
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
