"""No patient moves a sum further than the clipping norm, and noise has the deviation that the accountant is told."""

from __future__ import annotations

import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import nn

from client.privacy.faults import PrivacyError
from client.privacy.mechanism import GaussianSum
from client.privacy.noise import KEY_BYTES, SecretStream


def make_sum(clip_norm=1.0, noise_multiplier=0.0, shapes=((3, 4), (5,))):
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    return parameters, GaussianSum(parameters, clip_norm, noise_multiplier, SecretStream(bytes(KEY_BYTES)))


def gradients_of(parameters, *norms):
    torch.manual_seed(0)
    found = {p: torch.randn(len(norms), *p.shape) for p in parameters}
    length = sum(g.flatten(1).square().sum(1) for g in found.values()).sqrt()
    for p in found:
        found[p] *= (torch.tensor(norms) / length).view(-1, *[1] * p.dim())
    return found


def released(parameters):
    return torch.cat([p.grad.flatten() for p in parameters])


def test_long_gradients_are_cut_to_the_norm_and_short_ones_kept():
    for norm, wanted in ((0.5, 0.5), (1.0, 1.0), (2.0, 1.0), (1e6, 1.0)):
        parameters, total = make_sum()
        total.add(gradients_of(parameters, norm))
        total.release(expected=1.0)
        assert released(parameters).norm() == pytest.approx(wanted, rel=1e-5)
        assert released(parameters).norm() <= 1.0
        direction = torch.cat([g.flatten() for g in gradients_of(parameters, norm).values()]) / norm
        assert torch.allclose(released(parameters) / wanted, direction, atol=1e-5)


def test_adding_a_patient_moves_the_sum_by_no_more_than_the_norm_over_the_constant():
    others = (0.3, 5.0, 0.9)
    parameters, total = make_sum(clip_norm=0.7)
    total.add(gradients_of(parameters, *others, 40.0))
    total.release(expected=8.0)
    with_patient = released(parameters)
    found = {p: g[:3] for p, g in gradients_of(parameters, *others, 40.0).items()}
    total.add(found)
    total.release(expected=8.0)
    assert (with_patient - released(parameters)).norm() == pytest.approx(0.7 / 8, rel=1e-4)


def test_clipping_agrees_with_opacus():
    parameters, total = make_sum(clip_norm=0.8)
    found = gradients_of(parameters, 0.2, 0.8, 3.0, 90.0)
    total.add(found)
    total.release(expected=4.0)
    ours = released(parameters)
    stock = DPOptimizer(
        torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0, max_grad_norm=0.8, expected_batch_size=4
    )
    for parameter, gradient in found.items():
        parameter.grad_sample, parameter.summed_grad = gradient, None
    stock.pre_step()
    assert (ours - released(parameters)).norm() < 1e-5 * ours.norm()


def test_chunks_of_patients_add_up_to_the_whole():
    parameters, total = make_sum()
    found = gradients_of(parameters, 0.5, 2.0, 0.1, 7.0)
    total.add(found)
    total.release(expected=4.0)
    whole = released(parameters)
    for rows in (slice(0, 1), slice(1, 4)):
        total.add({p: g[rows] for p, g in found.items()})
    total.release(expected=4.0)
    assert torch.allclose(whole, released(parameters), atol=1e-7)


def test_noise_has_the_stated_deviation_in_every_number_and_is_fresh_at_every_release():
    clip_norm, sigma, expected = 0.5, 1.3, 8.0
    parameters, total = make_sum(clip_norm, sigma, shapes=((300, 200), (7,), (100_000,)))
    deviation = sigma * clip_norm / expected
    steps = []
    for _ in range(2):
        total.release(expected)
        steps.append(released(parameters))
    for noise in steps:
        assert stats.kstest((noise / deviation).numpy(), "norm").pvalue > 1e-3
        assert noise.std() == pytest.approx(deviation, rel=4 / (2 * len(noise)) ** 0.5)
    assert abs(torch.corrcoef(torch.stack(steps))[0, 1]) < 4 / len(noise) ** 0.5


def test_no_patient_at_all_still_releases_noise():
    parameters, total = make_sum(noise_multiplier=1.0)
    total.release(expected=2.0)
    assert all((p.grad != 0).all() for p in parameters)


def test_patient_without_a_finite_gradient_counts_as_zero():
    parameters, total = make_sum()
    found = gradients_of(parameters, 0.5, 0.5, 0.5)
    found[parameters[0]][1, 0, 0] = float("nan")
    found[parameters[1]][2, 0] = float("inf")
    factors = total.add(found)
    total.release(expected=1.0)
    alone = torch.cat([g[0].flatten() for g in gradients_of(parameters, 0.5, 0.5, 0.5).values()])
    assert factors.tolist()[1:] == [0.0, 0.0]
    assert torch.allclose(released(parameters), alone, atol=1e-6)


def test_parameter_unknown_beforehand_is_refused():
    _, total = make_sum()
    with pytest.raises(PrivacyError, match="1 tensors have a gradient for these patients only"):
        total.add({nn.Parameter(torch.zeros(2)): torch.zeros(1, 2)})
