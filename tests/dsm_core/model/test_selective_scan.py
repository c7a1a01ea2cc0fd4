"""Do the three faces of the selective scan compute the same thing, and the right one?"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu, softplus

from dsm_core.config import ConfigError
from dsm_core.model import native, selective_scan
from dsm_core.model.selective_scan import scan_backend, selective_scan_channel_last

BACKENDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not native.is_available(), reason="not built"))]
NAMES = ("u", "delta", "A", "B", "C", "D", "z")
needs_native = pytest.mark.skipif(not native.is_available(), reason="the C library was not built")


def reference(u, delta, A, B, C, D, z, use_softplus=True):
    """The recurrence as it is written in the paper, one step after the other."""
    delta = softplus(delta) if use_softplus else delta
    h, ys = 0.0, []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    return (torch.stack(ys, 1) + u * (D.unsqueeze(1) if D.dim() == 2 else D)) * silu(z)


def random_inputs(batch, length, channels, states, seed=0, per_sample=False, delta_scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    samples = (batch,) if per_sample else ()
    return [
        normal(batch, length, channels),
        normal(batch, length, channels) * delta_scale,
        -torch.exp(normal(*samples, channels, states)),
        normal(batch, length, states),
        normal(batch, length, states),
        normal(*samples, channels),
        normal(batch, length, channels),
    ]


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


def gradients_of(function, inputs, weights):
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    y = function(*inputs)
    return y.detach(), torch.autograd.grad(y, inputs, weights.to(y.dtype))


def assert_exact(inputs, backend):
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    wanted, wanted_gradients = gradients_of(reference, [t.double() for t in inputs], weights)
    found, gradients = gradients_of(
        lambda *tensors: selective_scan_channel_last(*tensors, backend=backend), inputs, weights
    )
    assert relative_error(found, wanted) < 1e-6
    for name, gradient, wanted_gradient in zip(NAMES, gradients, wanted_gradients, strict=True):
        assert gradient.shape == wanted_gradient.shape
        assert relative_error(gradient, wanted_gradient) < 5e-6, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_scan_worked_out_by_hand(backend):
    # exp(delta A) = 1/2, delta B = 1: h = 4, 4/2 + 2 = 4, 4/2 + 6 = 8; y = C h + D u
    u, ones = torch.tensor([4.0, 2.0, 6.0]).view(1, 3, 1), torch.ones(1, 3, 1)
    A, C = torch.tensor([[-math.log(2.0)]]), torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1)
    y = selective_scan_channel_last(u, ones, A, ones, C, torch.tensor([10.0]), delta_softplus=False, backend=backend)
    torch.testing.assert_close(y.flatten(), torch.tensor([4.0 + 40, 8.0 + 20, 4.0 + 60]))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(6, 40),  # in smaller ones y = <C, h> + D u may cancel to nothing, and no float32 is exact there
    channels=st.integers(5, 37),
    states=st.sampled_from([1, 2, 3, 8, 13, 16, 17]),
    per_sample=st.booleans(),
    delta_scale=st.sampled_from([1.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_outputs_and_gradients_are_those_of_the_loop(
    backend, batch, length, channels, states, per_sample, delta_scale, seed
):
    assert_exact(random_inputs(batch, length, channels, states, seed, per_sample, delta_scale), backend)


@needs_native
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set_computes_the_same(level):
    if native.kernels().scan_choose(level) is None:
        pytest.skip("this machine lacks the instruction set")
    try:
        assert_exact(random_inputs(2, 70, 21, 7, per_sample=True), "native")
        assert_exact(random_inputs(2, 45, 32, 16, delta_scale=10.0), "native")
    finally:
        native.kernels().scan_choose(-1)


@needs_native
def test_exponential_of_the_kernels_is_accurate_to_the_last_bits():
    x = torch.linspace(-10, 10, 10_007)
    y = native.exponentials(x, torch.empty_like(x)).double()
    assert ((y - x.double().exp()).abs() / x.double().exp()).max() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_memory_does_not_drift(backend):
    """A state that forgets a thousandth per step: a rounded decay factor would be off by 3e-5 after its memory."""
    inputs = random_inputs(1, 4000, 2, 2)
    inputs[1], inputs[2] = torch.full((1, 4000, 2), math.log(math.expm1(1e-3))), -torch.ones(2, 2)
    wanted = reference(*(t.double() for t in inputs))
    error = relative_error(selective_scan_channel_last(*inputs, backend=backend), wanted)
    assert error < (1e-6 if backend == "native" else 1e-4)


def test_gradcheck_of_the_torch_scan():
    inputs = [t.double().requires_grad_() for t in random_inputs(2, 5, 3, 2, per_sample=True)]
    assert torch.autograd.gradcheck(lambda *t: selective_scan_channel_last(*t, backend="torch"), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mamba_ssm_layout_strides_and_delta_bias(backend):
    u, delta, A, B, C, D, z = random_inputs(2, 30, 20, 16)
    bias = torch.linspace(-1, 1, 20)
    wanted = reference(u, delta + bias, A, B, C, D, z)
    swapped = [t.transpose(1, 2) for t in (u, delta, B, C, z)]
    for layout in (swapped, [t.contiguous() for t in swapped]):
        u_, delta_, B_, C_, z_ = layout
        y = selective_scan.selective_scan(u_, delta_, A, B_, C_, D, z_, bias, backend=backend)
        torch.testing.assert_close(y.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)
    every_second = [torch.stack([t, t], -1).flatten(-2)[..., ::2] for t in (u, delta, B, C, z)]
    u_, delta_, B_, C_, z_ = every_second
    y = selective_scan_channel_last(u_, delta_, A, B_, C_, D, z_, bias, backend=backend)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_strided_inputs_and_of_a_strided_output(backend):
    """Channels spread two apart, samples interleaved, and an output gradient that is one number everywhere."""
    dense = random_inputs(3, 20, 18, 16, per_sample=True)
    strided = [torch.stack([t, t], -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1) for t in dense]
    strided = [torch.stack([t, t], -1).flatten(-2)[..., ::2] for t in strided]
    assert not any(t.is_contiguous() for t in strided)
    _, wanted = gradients_of(reference, [t.double() for t in dense], torch.full(dense[0].shape, 2.0))
    inputs = [t.requires_grad_() for t in strided]
    y = selective_scan_channel_last(*inputs, backend=backend)
    found = torch.autograd.grad(y, inputs, torch.tensor(2.0).expand(y.shape))
    for name, gradient, wanted_gradient in zip(NAMES, found, wanted, strict=True):
        assert relative_error(gradient, wanted_gradient) < 5e-6, name


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_per_sample_parameters_have_the_gradients_of_each_sample_alone(backend, samples):
    inputs = random_inputs(samples, 40, 21, 8, per_sample=True)
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))

    def run(tensors, weights):
        return gradients_of(lambda *t: selective_scan_channel_last(*t, backend=backend), tensors, weights)[1]

    together = run(inputs, weights)
    for i in range(samples):
        alone = run([t[i : i + 1] for t in inputs], weights[i : i + 1])
        for name, gradient, wanted in zip(NAMES, together, alone, strict=True):
            assert relative_error(gradient[i : i + 1], wanted.double()) < 2e-6, name


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("native", marks=needs_native),
        pytest.param("torch", marks=pytest.mark.slow),  # a PyTorch call a step: half a minute
    ],
)
def test_a_million_steps(backend):
    """Constant inputs, whose states are a geometric sum: h_t = delta B u (1 - a^t) / (1 - a)."""
    length, delta, A = 1_000_000, 0.1, torch.tensor([[-1.0, -0.5], [-2.0, -0.02]])
    ones = torch.ones(1, length, 2)
    inputs = [ones, delta * ones, A, ones, ones, torch.zeros(2), ones]
    inputs = [t.clone().requires_grad_() for t in inputs]
    y = selective_scan_channel_last(*inputs[:6], delta_softplus=False, backend=backend)
    a, t = torch.exp(delta * A.double()), torch.arange(1.0, length + 1, dtype=torch.float64).view(-1, 1, 1)
    wanted = (delta * (1 - a**t) / (1 - a)).sum(-1)
    # A float32 state that remembers 500 steps settles up to 500 roundings beside the exact sum.
    assert relative_error(y[0].detach(), wanted) < 1e-4
    du, dA = torch.autograd.grad(y.sum(), [inputs[0], inputs[2]])
    assert relative_error(du[0].flip(0), wanted) < 1e-4
    assert dA.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (2, 1)])
def test_empty_and_single_step(backend, batch, length):
    inputs = [t.requires_grad_() for t in random_inputs(batch, length, 18, 5, per_sample=True)]
    y = selective_scan_channel_last(*inputs, backend=backend)
    y.sum().backward()
    assert y.shape == (batch, length, 18)
    assert all(t.grad is not None and t.grad.shape == t.shape for t in inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_other_float_types_come_back_in_their_type(backend, dtype, tolerance):
    inputs = [t.to(dtype) for t in random_inputs(2, 20, 16, 16)]
    inputs = [t.requires_grad_() for t in inputs]
    y = selective_scan_channel_last(*inputs, backend=backend)
    assert y.dtype == dtype
    assert [g.dtype for g in torch.autograd.grad(y.sum(), inputs)] == [dtype] * len(inputs)
    y, inputs = y.detach(), [t.detach() for t in inputs]
    assert relative_error(y, reference(*(t.double() for t in inputs))) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan_and_in_its_channel(backend, name):
    inputs = random_inputs(1, 12, 17, 4)
    position = NAMES.index(name)
    inputs[position].view(-1, inputs[position].shape[-1])[-1, -1] = torch.nan
    weights = torch.ones_like(inputs[0])
    y, gradients = gradients_of(
        lambda *tensors: selective_scan_channel_last(*tensors, backend=backend), inputs, weights
    )
    wanted, _ = gradients_of(reference, inputs, weights)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert wanted.isnan().any()
    assert any(gradient.isnan().any() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strong_decay_and_large_delta_stay_finite(backend):
    inputs = random_inputs(1, 50, 16, 16, delta_scale=0.0)
    inputs[1] += 10.0
    inputs[2] = inputs[2] * 1e4
    assert_exact(inputs, backend)


def test_wrong_shapes_name_what_was_found_and_wanted():
    u, delta, A, B, C, D, z = random_inputs(2, 6, 4, 3)
    with pytest.raises(ValueError, match=r"B wants shape \(2, 6, 3\), found \(2, 5, 3\)"):
        selective_scan_channel_last(u, delta, A, B[:, :5], C, D, z)
    with pytest.raises(ValueError, match=r"A wants shape \(4, 3\) or \(2, 4, 3\), found \(3, 3\)"):
        selective_scan_channel_last(u, delta, A[:3], B, C, D, z)
    with pytest.raises(ValueError, match=r"delta_bias wants shape \(4,\), found \(3,\)"):
        selective_scan_channel_last(u, delta, A, B, C, D, z, torch.ones(3))
    with pytest.raises(ValueError, match=r"found \(2, 6\)"):
        selective_scan_channel_last(u[..., 0], delta, A, B, C)
    with pytest.raises(ValueError, match="C wants 3 axes"):
        selective_scan.selective_scan(u, delta, A, B, C[0])


def test_backend_is_named_or_refused(monkeypatch, caplog):
    assert scan_backend("cpu", "torch") == "torch"
    assert scan_backend("cpu") == ("native" if native.is_available() else "torch")
    with pytest.raises(ConfigError, match="'fast'"):
        scan_backend("cpu", "fast")
    with pytest.raises(ConfigError, match="does not run on cpu tensors"):
        scan_backend("cpu", "cuda")
    with pytest.raises(ConfigError, match="does not run on cuda tensors"):
        scan_backend("cuda", "native")
    monkeypatch.setattr(native, "is_available", lambda: False)
    selective_scan._native_is_there.cache_clear()
    assert [scan_backend("cpu"), scan_backend("cpu")] == ["torch", "torch"]
    assert len(caplog.records) == 1
    assert "no C compiler" in caplog.text
    with pytest.raises(ConfigError, match="C compiler"):
        scan_backend("cpu", "native")
    selective_scan._native_is_there.cache_clear()


@needs_native
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_threads_within_and_around_calls_change_nothing(batch):
    inputs = random_inputs(batch, 700, 48, 16)
    weights = torch.ones_like(inputs[0])

    def run(_):
        return gradients_of(lambda *t: selective_scan_channel_last(*t, backend="native"), inputs, weights)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, alone_gradients = run(0)
        torch.set_num_threads(2)
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(run, range(6)))
    finally:
        torch.set_num_threads(before)
    for y, gradients in results:
        assert torch.equal(y, alone)
        for gradient, alone_gradient in zip(gradients, alone_gradients, strict=True):
            torch.testing.assert_close(gradient, alone_gradient, rtol=1e-5, atol=1e-4)


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scan_runs_in_a_fork_after_threads_were_used():
    inputs = random_inputs(2, 700, 48, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = selective_scan_channel_last(*inputs, backend="native")
        child = os.fork()
        if child == 0:
            same = torch.equal(selective_scan_channel_last(*inputs, backend="native"), wanted)
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)
