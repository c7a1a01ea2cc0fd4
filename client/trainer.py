"""A site's local training: some optimiser steps of DSM on the site's own patches.

Everything random is drawn from (seed, site, round), so that a round can be repeated bit for bit.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dsm_core.config import TrainConfig
from dsm_core.data import PatchBatch
from dsm_core.freed_memory import keep_freed_memory
from dsm_core.losses import dsm_loss
from dsm_core.model import DSM, QueryDropout, QuerySet
from dsm_core.text_space import TextSpace
from strategies.averaging import MOMENT, MOMENT_KINDS, moment_key

Arrays = dict[str, np.ndarray]


class Sampler(Protocol):
    """Draws batches of patches with their masks."""

    def sample(self, generator: np.random.Generator, batch: int) -> PatchBatch: ...


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
    """A model, its optimiser and the classes whose rows may move here.

    Attributes:
        labelled: names of the classes labelled in the data. Every other class row has no gradient here: it stays as it
            came, unless moments that travelled carry it on (the server takes no such row).
    """

    model: DSM
    text: TextSpace
    config: TrainConfig
    labelled: tuple[str, ...]
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        keep_freed_memory()
        rows = [p for name, p in self.model.named_parameters() if name.startswith("class_rows.")]
        shared = [p for name, p in self.model.named_parameters() if not name.startswith("class_rows.")]
        self.optimizer = torch.optim.AdamW(
            [{"params": shared, "weight_decay": self.config.weight_decay}, {"params": rows, "weight_decay": 0.0}],
            lr=self.config.lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        names = {id(tensor): name for name, tensor in self.model.state_dict(keep_vars=True).items()}
        self._keys = {names[id(parameter)]: parameter for parameter in self.model.parameters()}
        foreign = [i for i, name in enumerate(self.model.names) if name not in self.labelled]
        self._foreign = torch.tensor(foreign, dtype=torch.long, device=self.device)
        self._rows = rows
        self._query_sets: dict[tuple[str, ...], QuerySet] = {}

    @property
    def device(self) -> torch.device:
        """Where the model lies, and everything that meets it in a step."""
        return next(self.model.parameters()).device

    def steps(self, sampler: Sampler, count: int, lr: float, seed: StepSeed) -> dict[str, float]:
        """Run `count` optimiser steps; returns the mean of the loss and of its parts."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        draw, generator = seed.numpy(), seed.torch()
        totals: dict[str, float] = {}
        self.model.train()
        for _ in range(count):
            batch = sampler.sample(draw, self.config.batch)
            for name, value in self._step(batch, generator).items():
                totals[name] = totals.get(name, 0.0) + value / count
        return totals

    def _step(self, batch: PatchBatch, generator: torch.Generator) -> dict[str, float]:
        loss, parts = self.losses(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        self.step_with_gradients(self.config.clip_norm)
        return {"loss": loss.mean().item(), **{name: part.mean().item() for name, part in parts.items()}}

    def losses(self, batch: PatchBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every patch (B,), and its parts (B,) by name; patches do not meet in it."""
        batch, queries = batch.to(self.device), self._queries(batch.names)
        dropout = _query_dropout(queries, len(batch.image), self.config, generator)
        output = self.model(batch.image, queries, dropout)
        return dsm_loss(output, queries, batch.masks, batch.annotated, self.text.vectors.to(self.device))

    def step_with_gradients(self, clip_norm: float | None = None) -> None:
        """One optimiser step with the gradients at hand, no longer than `clip_norm`; foreign class rows get none."""
        for parameter in self.model.parameters():
            if parameter.grad is None and parameter.requires_grad:
                # a part that this site's classes do not use: its moments still move it
                parameter.grad = torch.zeros_like(parameter)
        for row in self._rows:
            if row.grad is not None:
                row.grad[self._foreign] = 0.0
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        self.optimizer.step()

    def _queries(self, names: tuple[str, ...]) -> QuerySet:
        if names not in self._query_sets:
            self._query_sets[names] = self.model.query_set(names, self.text)
        return self._query_sets[names]

    def load(self, arrays: Arrays) -> None:
        """Take over the tensors of a state dict; the arrays are copied."""
        self._query_sets.clear()
        tensors = {name: torch.from_numpy(np.asarray(a)) for name, a in arrays.items() if MOMENT not in name}
        self.model.load_state_dict(tensors)

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
    """Every tensor that travels: the state dict of the model as numpy arrays of its own."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def _query_dropout(queries: QuerySet, batch: int, config: TrainConfig, generator: torch.Generator) -> QueryDropout:
    count, width = queries.text.shape
    keep = torch.rand(batch, count, generator=generator) >= config.text_only
    noise = torch.randn(batch, count, width, generator=generator) * (config.text_noise / width**0.5)
    # Drawn on the CPU, whose numbers are the same on every machine.
    return QueryDropout(keep.to(queries.text), noise.to(queries.text))


def learning_rate(base: float, warmup: float, round: int, rounds: int) -> float:
    """Warm-up for a share of the rounds, then cosine (Loshchilov & Hutter 2017) to 2 % of the base rate.

    Args:
        round: counts from 1.
    """
    rising = max(1, int(warmup * rounds + 0.5))
    if round <= rising:
        return base * round / rising
    progress = (round - rising) / max(1, rounds - rising)
    return base * float(0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))
