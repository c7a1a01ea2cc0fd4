"""Is mamba-ssm called rightly? Against a plain stand-in for its function on any machine, against itself on a GPU."""

import pytest
import torch
from torch.nn.functional import silu, softplus

from dsm_core.model import selective_scan
from dsm_core.model.selective_scan import scan_backend, selective_scan_channel_last

needs_mamba_ssm = pytest.mark.skipif(
    not torch.cuda.is_available() or selective_scan._mamba_ssm() is None, reason="no CUDA device, or no mamba-ssm"
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """What mamba_ssm.ops.selective_scan_interface.selective_scan_fn computes: (B, D, L); B and C (B, groups, N, L)."""
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = softplus(delta) if delta_softplus else delta
    B, C = (t if t.dim() == 4 else t.unsqueeze(1) for t in (B, C))
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], 1) for t in (B, C))
    h, ys = torch.zeros_like(A), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[..., t]
        ys.append((h * C[..., t]).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + u * D[:, None]
    return y if z is None else y * silu(z)


def random_inputs(per_sample, dtype=torch.float32, device="cpu", length=12):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    samples = (3,) if per_sample else ()
    u, delta, z = (normal(3, length, 8) for _ in range(3))
    A, D = -torch.exp(normal(*samples, 8, 4)).float(), normal(*samples, 8).float()
    return [t.requires_grad_() for t in (u, delta, A, normal(3, length, 4), normal(3, length, 4), D, z)]


def assert_equal(run, inputs, tolerance):
    exact = [t.detach().cpu().double().requires_grad_() for t in inputs]
    wanted = selective_scan_channel_last(*exact, backend="torch")
    found = run(inputs)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).double()
    pairs = [(found, wanted)]
    pairs += zip(
        torch.autograd.grad(found, inputs, weights.to(found.device, found.dtype)),
        torch.autograd.grad(wanted, exact, weights),
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == other.shape
        assert (one.cpu().double() - other).norm() / other.norm() < tolerance


@pytest.mark.parametrize("per_sample", [False, True])
def test_shapes_and_groups_are_those_that_mamba_ssm_takes(monkeypatch, per_sample):
    monkeypatch.setattr(selective_scan, "_mamba_ssm", lambda: selective_scan_fn)
    assert_equal(lambda t: selective_scan._scan_cuda(*t, softplus=True), random_inputs(per_sample), 1e-6)


def test_cuda_without_mamba_ssm_scans_in_pytorch(monkeypatch):
    monkeypatch.setattr(selective_scan, "_mamba_ssm", lambda: None)
    assert scan_backend("cuda") == "torch"
    monkeypatch.setattr(selective_scan, "_mamba_ssm", lambda: selective_scan_fn)
    assert scan_backend("cuda") == "cuda"


@pytest.mark.gpu
@needs_mamba_ssm
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("per_sample", [False, True])
def test_mamba_ssm_computes_what_the_cpu_computes(dtype, per_sample):
    inputs = random_inputs(per_sample, dtype, "cuda", length=300)
    assert_equal(lambda t: selective_scan_channel_last(*t, backend="cuda"), inputs, TOLERANCE[dtype])


@pytest.mark.gpu
@needs_mamba_ssm
def test_mamba_ssm_own_layer_takes_our_weights_and_gives_our_output():
    from mamba_ssm import Mamba as TheirMamba

    from dsm_core.model.mamba import Mamba

    ours, theirs = Mamba(64).cuda(), TheirMamba(64).cuda()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    sequence = torch.randn(2, 500, 64, device="cuda")
    torch.testing.assert_close(ours(sequence), theirs(sequence), rtol=1e-3, atol=1e-4)
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_torch_scan_runs_on_cuda():
    inputs = random_inputs(True, torch.float32, "cuda", length=100)
    assert_equal(lambda t: selective_scan_channel_last(*t, backend="torch"), inputs, 1e-5)
