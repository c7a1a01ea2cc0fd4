"""A site's local training: some optimiser steps of DSM towards the objective of a stage, on the site's own scans.

Everything random is drawn from (seed, site, round), so that a round can be repeated bit for bit.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsm_core.config import TrainConfig
from dsm_core.device import placed
from dsm_core.freed_memory import keep_freed_memory
from dsm_core.model import DSM
from dsm_core.objectives import Objective, freeze_others
from strategies.averaging import CLASS_ROWS, MOMENT, MOMENT_KINDS, moment_key

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class StepSeed:
    """Where a round's randomness comes from."""

    seed: int
    site: str
    round: int

    def numpy(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.site.encode()), self.round])

    def torch(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.numpy().integers(2**62)))


@dataclass
class Trainer:
    """A model, its optimiser and the objective of a stage.

    Only the parameters that the objective trains have moments and move; of the class rows, only those of classes that
    it names. Every other row has no gradient here: it stays as it came, unless moments that travelled carry it on (the
    server takes no such row).
    """

    model: DSM
    objective: Objective
    config: TrainConfig
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        keep_freed_memory()
        freeze_others(self.model, self.objective.trained)
        self.model.zero_grad(set_to_none=True)  # what another stage has left would lengthen the gradient of this one
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._rows = [p for name, p in named.items() if name.startswith(CLASS_ROWS)]
        shared = [p for name, p in named.items() if not name.startswith(CLASS_ROWS)]
        self.optimizer = torch.optim.AdamW(
            [{"params": shared, "weight_decay": self.config.weight_decay}, {"params": self._rows, "weight_decay": 0.0}],
            lr=self.config.lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        keys = {id(tensor): key for key, tensor in self.model.state_dict(keep_vars=True).items()}
        self._keys = {keys[id(parameter)]: parameter for parameter in named.values()}
        foreign = [i for i, name in enumerate(self.model.names) if name not in self.objective.rows]
        self._foreign = torch.tensor(foreign, dtype=torch.long, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the model lies, and everything that meets it in a step."""
        return next(self.model.parameters()).device

    def steps(self, count: int, lr: float, seed: StepSeed) -> dict[str, float]:
        """Run `count` optimiser steps; returns the mean of the loss and of its parts."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        draw, generator = seed.numpy(), seed.torch()
        totals: dict[str, float] = {}
        self.model.train()
        for _ in range(count):
            batch = self.objective.sample(draw, self.objective.batch)
            for name, value in self._step(batch, generator).items():
                totals[name] = totals.get(name, 0.0) + value / count
        return totals

    def _step(self, batch: Any, generator: torch.Generator) -> dict[str, float]:
        loss, parts = self.losses(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        self.step_with_gradients(self.config.clip_norm)
        return {"loss": loss.mean().item(), **{name: part.mean().item() for name, part in parts.items()}}

    def losses(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every sample (B,), and its parts (B,) by name; samples do not meet in it."""
        return self.objective.losses(placed(batch, self.device), generator)

    def step_with_gradients(self, clip_norm: float | None = None) -> None:
        """One optimiser step with the gradients at hand, no longer than `clip_norm`; foreign class rows get none."""
        for parameter in self._keys.values():
            if parameter.grad is None and parameter.requires_grad:
                # a part that this site's classes do not use: its moments still move it
                parameter.grad = torch.zeros_like(parameter)
        for row in self._rows:
            if row.grad is not None:
                row.grad[self._foreign] = 0.0
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._keys.values(), clip_norm)
        self.optimizer.step()

    def load(self, arrays: Arrays) -> None:
        """Take over the tensors of a state dict; the arrays are copied."""
        load_arrays(self.model, arrays)
        self.objective.model_changed()

    def arrays(self) -> Arrays:
        """The model's state dict as arrays of its own."""
        return model_arrays(self.model)

    def moments(self) -> Arrays:
        """AdamW's moments as `KEY@exp_avg` and `KEY@exp_avg_sq`, KEY of the state dict; empty before the first step."""
        return {
            moment_key(key, kind): state[kind].cpu().numpy().copy()
            for key, parameter in self._keys.items()
            if (state := self.optimizer.state.get(parameter))
            for kind in MOMENT_KINDS
        }

    def load_moments(self, moments: Arrays, steps: int) -> None:
        """Go on with these moments after `steps` optimiser steps; empty ones begin anew."""
        self.optimizer.state.clear()
        for key, parameter in self._keys.items():
            if moment_key(key, MOMENT_KINDS[0]) in moments:
                state = {
                    kind: torch.from_numpy(np.array(moments[moment_key(key, kind)])).to(parameter.device)
                    for kind in MOMENT_KINDS
                }
                state["exp_avg_sq"].clamp_(min=0)
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(steps), device=parameter.device),  # the fused step wants it there
                    **state,
                }


def model_arrays(model: DSM) -> Arrays:
    """The state dict of the model as numpy arrays of its own."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def load_arrays(model: DSM, arrays: Arrays) -> None:
    """Fill a model with the tensors of a state dict; the arrays are copied, and moments among them left out."""
    model.load_state_dict({key: torch.from_numpy(np.asarray(a)) for key, a in arrays.items() if MOMENT not in key})


def learning_rate(base: float, warmup: float, round: int, rounds: int) -> float:
    """Warm-up for a share of the rounds of a stage, then cosine (Loshchilov & Hutter 2017) to 2 % of its base rate.

    Args:
        round: counts from 1, within the stage.
    """
    rising = max(1, int(warmup * rounds + 0.5))
    if round <= rising:
        return base * round / rising
    progress = (round - rising) / max(1, rounds - rising)
    return base * float(0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))
