"""What is a stage of training? The tensors that move in it, the batches it draws, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dsm_core.data import Datalist


class Objective(Protocol):
    """A stage as a trainer sees it.

    Attributes:
        trained: prefixes of the names of the parameters that move. Everything else stays as it is, bit for bit.
        rows: the classes whose rows move, if `trained` holds the class rows.
        batch: samples of a step.
    """

    @property
    def trained(self) -> tuple[str, ...]: ...

    @property
    def rows(self) -> tuple[str, ...]: ...

    @property
    def batch(self) -> int: ...

    def sample(self, draw: np.random.Generator, batch: int) -> Any:
        """Samples of all cases; every number comes from `draw`."""
        ...

    def losses(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every sample (B,), and its parts (B,) by name; samples do not meet in it."""
        ...

    def model_changed(self) -> None:
        """To be called when the model was given other tensors from outside."""
        ...


class SiteObjective(Objective, Protocol):
    """A stage at one site, case by case: for training that samples patients (differential privacy), and for pooling.

    Attributes:
        datalist: the cases that `sample_case` counts.
        shares_draws: the samples of one call of `losses` share what it draws. Under differential privacy a patient then
            needs a call alone: in company, who else takes part would change the patient's own gradient.
    """

    @property
    def datalist(self) -> Datalist: ...

    @property
    def shares_draws(self) -> bool: ...

    def sample_case(self, index: int, draw: np.random.Generator, batch: int) -> Any:
        """Samples of one case."""
        ...

    def join(self, parts: Sequence[Any]) -> Any:
        """One batch of several, which may know different classes."""
        ...

    def public_batch(self, batch: int) -> Any:
        """Samples of nobody's data that use every parameter that this site's samples use."""
        ...


def is_trained(name: str, trained: tuple[str, ...]) -> bool:
    """Whether a parameter moves."""
    return name.startswith(trained)


def freeze_others(model: nn.Module, trained: tuple[str, ...]) -> None:
    """Only the parameters that move require a gradient."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, trained))
