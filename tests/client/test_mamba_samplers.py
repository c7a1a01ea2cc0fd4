"""Does Opacus see a Mamba layer's samples apart? Its per-sample gradients against one sample at a time."""

import copy

import pytest
import torch
from opacus.grad_sample import GradSampleModule

from dsm_core.model import native
from dsm_core.model.mamba import Mamba

needs_native = pytest.mark.skipif(not native.is_available(), reason="the C library was not built")
BACKENDS = ["torch", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [1, 3])
def test_per_sample_gradients_are_those_of_one_sample_alone(backend, samples):
    torch.manual_seed(0)
    layer, batch = Mamba(16, d_state=8, backend=backend), torch.randn(samples, 40, 16)
    private = GradSampleModule(copy.deepcopy(layer), loss_reduction="sum")
    private(batch).square().sum().backward()
    found = {name: p.grad_sample for name, p in private._module.named_parameters()}
    for i in range(samples):
        layer.zero_grad()
        layer(batch[i : i + 1]).square().sum().backward()
        for name, parameter in layer.named_parameters():
            error = (found[name][i] - parameter.grad).norm() / parameter.grad.norm()
            assert error < 2e-6, name
