"""Are the sums behind Dice and cross-entropy those of PyTorch's plain operations, and their gradients?"""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dsm_core.mask_sums import mask_sums


def plain_sums(logits, masks):
    probability, masks = torch.sigmoid(logits), masks.to(logits.dtype)
    cross_entropy = binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return (probability * masks).sum(2), probability.sum(2), cross_entropy.sum(2), masks.sum(2)


def random_masks(scale=3.0, shape=(2, 3, 500)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * scale, torch.rand(shape, generator=generator) > 0.8


def test_sums_worked_out_by_hand():
    sums = mask_sums(torch.zeros(1, 1, 4), torch.tensor([[[True, False, False, True]]]))
    assert (sums.overlap.item(), sums.predicted.item(), sums.volume.item()) == (1.0, 2.0, 2.0)
    assert sums.cross_entropy.item() == pytest.approx(4 * 0.693147)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_sums_and_gradients_are_those_of_plain_operations(scale):
    logits, masks = random_masks(scale)
    weights = torch.randn(3, 2, 3)
    found_from, wanted_from = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found, wanted = mask_sums(found_from, masks), plain_sums(wanted_from, masks)
    assert not found.volume.requires_grad
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-4)
    sum((w * s).sum() for w, s in zip(weights, found[:3], strict=True)).backward()
    sum((w * s).sum() for w, s in zip(weights.double(), wanted[:3], strict=True)).backward()
    torch.testing.assert_close(found_from.grad.double(), wanted_from.grad, rtol=1e-5, atol=1e-6)


def test_gradcheck():
    logits, masks = random_masks(shape=(2, 2, 7))
    assert torch.autograd.gradcheck(lambda z: mask_sums(z, masks)[:3], logits.double().requires_grad_())


def test_short_floats_are_summed_in_float32():
    logits, masks = random_masks()
    sums = mask_sums(logits.bfloat16(), masks)
    assert sums.predicted.dtype == torch.float32
    torch.testing.assert_close(sums.predicted, torch.sigmoid(logits.bfloat16().float()).sum(2))


def test_samples_and_classes_stay_apart_and_nan_stays_nan():
    logits, masks = random_masks()
    before = mask_sums(logits, masks)
    logits[1, 2, 5] = torch.nan
    after = mask_sums(logits, masks)
    for one, other in zip(before[:3], after[:3], strict=True):
        assert other[1, 2].isnan()
        assert torch.equal(one.flatten()[:-1], other.flatten()[:-1])


@pytest.mark.parametrize("shape", [(0, 3, 10), (2, 0, 10), (2, 3, 0)])
def test_nothing_sums_to_nothing(shape):
    logits = torch.zeros(shape, requires_grad=True)
    sums = mask_sums(logits, torch.zeros(shape, dtype=torch.bool))
    assert sums.overlap.shape == shape[:2]
    (sums.overlap + sums.cross_entropy).sum().backward()
    assert logits.grad.shape == shape
