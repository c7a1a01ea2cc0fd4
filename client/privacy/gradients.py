"""What is each patient's gradient of the whole model? One backward pass, read layer by layer on its way.

Axis legend: `P` patients, `K` patches of a patient, `B` = P K patches in a row, a patient's patches side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from client.privacy.faults import PrivacyError
from client.privacy.layers import trained_layers
from client.privacy.samplers import SAMPLERS


class PatientGradients:
    """The gradient of every patient's mean loss, for a model whose forward passes run while the context is open.

    The technique of Opacus' hooks with two differences: what is summed up is a patient and not a patch, so memory grows
    with the patients only; and autograd is told not to compute the ordinary weight gradients, which nobody would read.

    Raises:
        PrivacyError: the model has layers that mix patients, or whose gradient per patient is not known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = trained_layers(model)
        self._found: dict[nn.Parameter, Tensor] = {}
        self._roots: dict[nn.Parameter, None] = {}
        self._shape = (0, 0)
        self._handles: list[Any] = []

    def __enter__(self) -> PatientGradients:
        watched = self._layers.items()
        self._handles = [layer.register_forward_hook(partial(self._watch, name)) for name, layer in watched]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._found, self._roots = {}, {}

    def backward(self, losses: Tensor, patches: int = 1) -> Mapping[nn.Parameter, Tensor]:
        """Gradients (P, *shape) by parameter; a parameter that the losses do not use is absent.

        Args:
            losses: (B,), one loss a patch, of the one forward pass since the last call.
            patches: K.

        Raises:
            PrivacyError: a layer was called without the patches as its first axis.
        """
        self._found, self._shape = {}, (len(losses) // patches, patches)
        try:
            (losses.sum() / patches).backward(inputs=list(self._roots))
        finally:
            for parameter in self._roots:
                parameter.grad = None
            self._roots = {}
        return self._found

    def _watch(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        if not any(tensor.requires_grad for tensor in inputs):
            # Autograd walks only towards these; every other trained layer lies on the way to one of them.
            self._roots |= dict.fromkeys(p for p in layer.parameters(recurse=False) if p.requires_grad)
        output.register_hook(partial(self._take, name, layer, [tensor.detach() for tensor in inputs]))

    def _take(self, name: str, layer: nn.Module, inputs: list[Tensor], gradient: Tensor) -> None:
        patients, patches = self._shape
        for tensor in (*inputs, gradient):
            if len(tensor) != patients * patches:
                raise PrivacyError(
                    f"{name} was called with {len(tensor)} rows for {patients * patches} patches, so its gradient "
                    f"cannot be told apart by patient; expand its input to one row a patch"
                )
        inputs = [tensor.unflatten(0, self._shape) for tensor in inputs]
        for parameter, found in SAMPLERS[type(layer)](layer, inputs, gradient.unflatten(0, self._shape)).items():
            if parameter.requires_grad:
                seen = self._found.get(parameter)
                self._found[parameter] = found if seen is None else seen + found
