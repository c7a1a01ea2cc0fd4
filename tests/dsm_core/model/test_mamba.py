"""Does the Mamba layer hold mamba-ssm's parameters, and does it keep samples apart?"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, silu, softplus

from dsm_core.model import native
from dsm_core.model.causal_conv import causal_conv
from dsm_core.model.mamba import CausalConv1d, Mamba, MambaBlock3d, SampleWeight

MAMBA_SSM_64 = {  # mamba_ssm.Mamba(64, d_state=16, d_conv=4, expand=2).state_dict()
    "A_log": (128, 16),
    "D": (128,),
    "in_proj.weight": (256, 64),
    "conv1d.weight": (128, 1, 4),
    "conv1d.bias": (128,),
    "x_proj.weight": (36, 128),
    "dt_proj.weight": (128, 4),
    "dt_proj.bias": (128,),
    "out_proj.weight": (64, 128),
}
needs_native = pytest.mark.skipif(not native.is_available(), reason="the C library was not built")
BACKENDS = ["torch", pytest.param("native", marks=needs_native)]


def mamba_ssm_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in MAMBA_SSM_64.items()}


def plain_mamba(weights, sequence):
    """The layer as the paper's code writes it, one step after the other."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    length = sequence.shape[1]
    x, z = (sequence.double() @ w["in_proj.weight"].T).chunk(2, -1)
    x = silu(conv1d(x.transpose(1, 2), w["conv1d.weight"], w["conv1d.bias"], padding=3, groups=128)[..., :length])
    x = x.transpose(1, 2)
    delta, B, C = (x @ w["x_proj.weight"].T).split([4, 16, 16], -1)
    delta = softplus(delta @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    h, ys = 0.0, []
    for t in range(length):
        decay = torch.exp(-delta[:, t, :, None] * w["A_log"].exp())
        h = decay * h + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + w["D"] * x[:, t])
    return (torch.stack(ys, 1) * silu(z)) @ w["out_proj.weight"].T


def test_state_dict_is_that_of_mamba_ssm():
    assert {name: tuple(t.shape) for name, t in Mamba(64).state_dict().items()} == MAMBA_SSM_64


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_mamba_ssm_load_strictly_and_compute_the_same(backend):
    layer, weights = Mamba(64, backend=backend), mamba_ssm_weights()
    layer.load_state_dict(weights, strict=True)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, weights[name])
    sequence = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(sequence).double(), plain_mamba(weights, sequence), rtol=1e-4, atol=1e-5)


class MambaSsm(nn.Module):
    """The parameters of mamba_ssm.Mamba(64), declared as its source declares them; it computes nothing."""

    def __init__(self):
        super().__init__()
        self.in_proj = nn.Linear(64, 256, bias=False)
        self.conv1d = nn.Conv1d(128, 128, bias=True, kernel_size=4, groups=128, padding=3)
        self.x_proj = nn.Linear(128, 4 + 2 * 16, bias=False)
        self.dt_proj = nn.Linear(4, 128, bias=True)
        self.A_log = nn.Parameter(torch.arange(1.0, 17.0).log().repeat(128, 1))
        self.D = nn.Parameter(torch.ones(128))
        self.out_proj = nn.Linear(128, 64, bias=False)


def test_weights_travel_strictly_both_ways():
    ours, theirs = Mamba(64), MambaSsm()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


def test_layer_of_transformers_takes_our_weights_and_gives_our_output():
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba", reason="extra bench is not installed")
    config = mamba.MambaConfig(hidden_size=64, state_size=16, conv_kernel=4, expand=2, time_step_rank=4)
    ours, theirs = Mamba(64), mamba.MambaMixer(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    sequence = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(theirs.eval()(sequence), ours(sequence), rtol=1e-4, atol=1e-5)
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_missing_and_unknown_weights_are_named():
    weights = mamba_ssm_weights()
    del weights["A_log"], weights["conv1d.bias"]
    weights["E_log"] = torch.ones(1)
    outcome = Mamba(64).load_state_dict(weights, strict=False)
    assert sorted(outcome.missing_keys) == ["A_log", "conv1d.bias"]
    assert outcome.unexpected_keys == ["E_log"]


def test_layers_inside_others_load_copy_and_stay_apart():
    block = MambaBlock3d(16, state_size=4)
    other = copy.deepcopy(block)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(other.scans[0].A_log.weight, block.scans[0].A_log.weight)
    assert "scans.2.A_log" in block.state_dict()
    assert "scans.1.conv1d.weight" in block.state_dict()
    other.load_state_dict(block.state_dict(), strict=True)
    volume = torch.randn(2, 16, 2, 3, 4)
    assert torch.equal(block(volume), other(volume))


@pytest.mark.parametrize("backend", BACKENDS)
def test_convolution_is_that_of_pytorch(backend):
    layer, x = CausalConv1d(20, 3), torch.randn(2, 9, 40)[..., :20].requires_grad_()
    wanted = silu(conv1d(x.transpose(1, 2), layer.weight.weight, layer.bias.weight, padding=2, groups=20)[..., :9])
    weights, inputs = torch.randn(2, 9, 20), [x, layer.weight.weight, layer.bias.weight]
    wanted_gradients = torch.autograd.grad(wanted.transpose(1, 2), inputs, weights)
    y = layer(x, backend)
    torch.testing.assert_close(y, wanted.transpose(1, 2))
    for gradient, wanted_gradient in zip(torch.autograd.grad(y, inputs, weights), wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_convolution_shorter_and_longer_than_its_taps(backend, taps, length):
    x, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((2, length, 5), (2, 5, taps), (2, 5)))
    exact = [t.clone().requires_grad_() for t in (x, weight, bias)]
    single = [t.float().requires_grad_() for t in (x, weight, bias)]
    wanted, found = causal_conv(*exact, backend="torch"), causal_conv(*single, backend=backend)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    for gradient, wanted_gradient in zip(
        torch.autograd.grad(found.square().sum(), single),
        torch.autograd.grad(wanted.square().sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [1, 3])
def test_leaf_output_gradients_are_those_of_one_sample_alone(backend, samples):
    """What a per-sample sampler reads: the output gradient of every leaf that holds a state-space parameter."""
    torch.manual_seed(0)
    layer, batch = Mamba(16, d_state=8, backend=backend), torch.randn(samples, 40, 16)
    leaves = {name: leaf for name, leaf in layer.named_modules() if isinstance(leaf, SampleWeight)}
    assert sorted(leaves) == ["A_log", "D", "conv1d.bias", "conv1d.weight"]
    found = {}
    hooks = [
        leaf.register_full_backward_hook(lambda _, __, output, name=name: found.update({name: output[0]}))
        for name, leaf in leaves.items()
    ]
    layer(batch).square().sum().backward()
    for hook in hooks:
        hook.remove()
    for i in range(samples):
        layer.zero_grad()
        layer(batch[i : i + 1]).square().sum().backward()
        for name, leaf in leaves.items():
            error = (found[name][i] - leaf.weight.grad).norm() / leaf.weight.grad.norm()
            assert error < 2e-6, name


def test_layer_is_causal():
    layer, sequence = Mamba(16, d_state=4), torch.randn(1, 12, 16)
    changed = sequence.clone()
    changed[:, 7:] += 1
    assert torch.equal(layer(sequence)[:, :7], layer(changed)[:, :7])
    assert not torch.equal(layer(sequence)[:, 7:], layer(changed)[:, 7:])


def test_block_returns_the_shape_and_sees_the_whole_volume():
    torch.manual_seed(0)
    block = MambaBlock3d(16, state_size=4)
    volume = torch.randn(2, 16, 4, 3, 5)
    y = block(volume)
    assert y.shape == volume.shape
    assert y.is_contiguous()
    for corner in ((0, 0, 0), (-1, -1, -1)):
        changed = volume.clone()
        changed[(slice(None), slice(None), *corner)] += 3 * torch.randn(2, 16)
        reached = (block(changed) - y).abs().amax(dim=(0, 1)) > 0
        assert reached.all()


def test_orders_visit_neighbours_of_each_axis_in_turn():
    index = torch.arange(2 * 3 * 4).view(1, 2, 3, 4, 1)
    strides = {0: 1, 1: 12, 2: 4}  # flat distance of neighbours in Z, X and Y
    for number, (order, inverse) in enumerate(zip(MambaBlock3d.ORDERS, MambaBlock3d.INVERSES, strict=True)):
        walk = index.permute(order)
        assert walk.flatten()[1] - walk.flatten()[0] == strides[number]
        assert torch.equal(walk.permute(inverse), index)


def test_low_precision_autocast_keeps_the_scan_in_float32():
    layer, sequence = Mamba(32), torch.randn(2, 20, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(sequence)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(sequence), rtol=0.1, atol=0.02)
