"""Which layers of a model are trained, and can each give a gradient per patient? Every fault at once, by name."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from client.privacy.faults import PrivacyError
from client.privacy.samplers import SAMPLERS

_REPLACEMENTS: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "statistics over the batch mix patients; use nn.GroupNorm"),
    (nn.MultiheadAttention, "it calls its weights past their layers; use nn.Linear and scaled_dot_product_attention"),
    (nn.RNNBase, "it holds many steps in raw parameters; use dsm_core.model's Mamba layers"),
    (nn.modules.instancenorm._InstanceNorm, "use nn.GroupNorm with one channel a group"),
)


def trained_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer that owns a trained parameter, by its name in the model.

    Raises:
        PrivacyError: layers that mix patients, or whose gradient per patient is not known; each with its replacement.
    """
    layers, faults = {}, []
    for name, layer in model.named_modules():
        is_trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        if is_trained:
            layers[name] = layer
        if is_trained or isinstance(layer, _BatchNorm):
            faults += [f"{name or 'the model itself'} ({type(layer).__name__}): {fault}" for fault in _faults(layer)]
    if faults:
        raise PrivacyError("these layers cannot be trained privately: " + "; ".join(faults))
    return layers


def _faults(layer: nn.Module) -> list[str]:
    if type(layer) in SAMPLERS:
        if isinstance(layer, _ConvNd) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
            return [f"padding {layer.padding!r}, {layer.padding_mode}; use zeros, and a number of voxels"]
        return []
    known = [advice for kind, advice in _REPLACEMENTS if isinstance(layer, kind)]
    if known:
        return known[:1]
    raw = [name for name, parameter in layer.named_parameters(recurse=False) if parameter.requires_grad]
    leaf = "give each a leaf module of its own, as dsm_core.model.SampleWeight, or a sampler in client.privacy.samplers"
    return [f"no gradient per patient is known for its parameters {', '.join(raw)}; {leaf}"]
