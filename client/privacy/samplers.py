"""What is a patient's gradient of one layer? A sampler per layer type, given the layer's inputs and output gradients.

Axis legend: `P` patients, `K` patches of a patient, `C` channels. A sampler is handed (P, K, ...) and returns, for each
trained parameter of the layer, (P, *parameter.shape), summed over a patient's patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from dsm_core.model import Rows, SampleWeight, SharedVector

Found = dict[Any, Tensor]  # parameter -> (P, *shape)
Sampler = Callable[[Any, list[Tensor], Tensor], Found]


def sample_convolution(layer: _ConvNd, inputs: list[Tensor], gradients: Tensor) -> Found:
    """Weight-only backward convolutions: one for each patient, or all patients as the groups of one.

    Opacus' own sampler unfolds the input, 27 times its size for a 3x3x3 kernel. For a single small sample PyTorch takes
    a slow path (16 -> 16 channels at 24^3: 10 ms a sample against 2 ms in a batch), which groups avoid.
    """
    x, weight = inputs[0].to(gradients.dtype), layer.weight
    found: Found = {}
    patients, patches = gradients.shape[:2]
    if weight.requires_grad and patches == 1 and layer.groups == 1 and not layer.transposed:
        of_all = weight.repeat(patients, *[1] * (weight.dim() - 1))
        grouped = _weight_gradient(layer, x.flatten(0, 2)[None], gradients.flatten(0, 2)[None], of_all, patients)
        found[weight] = grouped.view(patients, *weight.shape)
    elif weight.requires_grad:
        of_each = [_weight_gradient(layer, x[i], gradients[i], weight, layer.groups) for i in range(patients)]
        found[weight] = torch.stack(of_each)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = gradients.flatten(3).sum((1, 3))
    return found


def _weight_gradient(layer: _ConvNd, x: Tensor, gradients: Tensor, weight: Tensor, groups: int) -> Tensor:
    sizes = layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, groups
    wanted = [False, True, False]  # of input, weight and bias
    return torch.ops.aten.convolution_backward(gradients, x, weight, None, *sizes, wanted)[1]


def sample_group_norm(layer: nn.GroupNorm, inputs: list[Tensor], gradients: Tensor) -> Found:
    """Scale: output gradient times normalised input; shift: output gradient; both summed over patches and voxels."""
    found, flat = {}, gradients.flatten(3)
    if layer.weight.requires_grad:
        normalised = F.group_norm(inputs[0].flatten(0, 1), layer.num_groups, eps=layer.eps).view_as(flat)
        found[layer.weight] = torch.einsum("pkcn,pkcn->pc", normalised, flat)
    if layer.bias.requires_grad:
        found[layer.bias] = flat.sum((1, 3))
    return found


def sample_handed_out(layer: SampleWeight | Rows | SharedVector, inputs: list[Tensor], gradients: Tensor) -> Found:
    """A leaf that hands its weight out once per sample: its output gradient is the gradient."""
    return {layer.weight: gradients.reshape(*gradients.shape[:2], *layer.weight.shape).sum(1)}


# Opacus' samplers of Linear and LayerNorm sum over all axes between the first and the last: patches are such an axis.
SAMPLERS: dict[type[nn.Module], Sampler] = {
    nn.Conv1d: sample_convolution,
    nn.Conv2d: sample_convolution,
    nn.Conv3d: sample_convolution,
    nn.ConvTranspose3d: sample_convolution,
    nn.GroupNorm: sample_group_norm,
    nn.LayerNorm: GradSampleHooks.GRAD_SAMPLERS[nn.LayerNorm],
    nn.Linear: GradSampleHooks.GRAD_SAMPLERS[nn.Linear],
    Rows: sample_handed_out,
    SampleWeight: sample_handed_out,
    SharedVector: sample_handed_out,
}
