"""Partial-label losses: numbers worked out by hand, and the promise that the unknown teaches nothing."""

import math

import pytest
import torch

from dsm_core.losses import allowed_groups, grouping_loss, mask_losses, text_loss


def test_mask_losses_of_a_known_overlap() -> None:
    logits = torch.tensor([[[100.0, 100.0, -100.0, -100.0]]]).reshape(1, 1, 4, 1, 1)
    masks = torch.tensor([True, False, False, False]).reshape(1, 1, 4, 1, 1)
    dice, cross_entropy = mask_losses(logits, masks, torch.tensor([[True]]))
    assert dice.item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 1 + 1))
    assert cross_entropy.item() == pytest.approx(100 / 4)


def test_class_that_is_not_annotated_gives_no_loss_and_no_gradient() -> None:
    logits = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    masks = torch.rand(2, 2, 4, 4, 4) > 0.5
    annotated = torch.tensor([[True, False], [False, False]])
    dice, cross_entropy = mask_losses(logits, masks, annotated)
    (dice + cross_entropy).sum().backward()
    assert dice[1] == 0
    assert cross_entropy[1] == 0
    assert logits.grad is not None
    assert logits.grad[0, 0].abs().sum() > 0
    assert logits.grad[0, 1].abs().sum() == 0
    assert logits.grad[1].abs().sum() == 0


def test_samples_do_not_depend_on_each_other() -> None:
    logits, masks = torch.randn(3, 2, 4, 4, 4), torch.rand(3, 2, 4, 4, 4) > 0.7
    annotated = torch.tensor([[True, True], [True, False], [False, True]])
    together = torch.stack(mask_losses(logits, masks, annotated))
    alone = torch.cat(
        [torch.stack(mask_losses(logits[i : i + 1], masks[i : i + 1], annotated[i : i + 1])) for i in range(3)], 1
    )
    torch.testing.assert_close(together, alone)


def test_voxel_of_an_annotated_organ_allows_only_that_organ() -> None:
    share = torch.tensor([1.0, 0.0, 0.2]).reshape(1, 1, 3, 1, 1)
    allowed = allowed_groups(share, torch.tensor([[True]]), torch.tensor([1]), groups=3)[0, :, :, 0, 0]
    assert allowed[:, 0].tolist() == [False, True, False]
    assert allowed[:, 1].tolist() == [True, False, True]  # group 0 is annotated nowhere here, group 2 is void
    assert allowed[:, 2].tolist() == [True, True, True]  # the organ touches this voxel


def test_organ_not_annotated_in_this_case_stays_possible() -> None:
    share = torch.ones(1, 1, 2, 1, 1)
    allowed = allowed_groups(share, torch.tensor([[False]]), torch.tensor([0]), groups=2)
    assert allowed.all()
    assert grouping_loss(torch.randn(1, 2, 2, 1, 1), allowed).item() == pytest.approx(0, abs=1e-6)


def test_grouping_loss_is_minus_log_of_the_allowed_share() -> None:
    logits = torch.zeros(1, 4, 1, 1, 1)
    allowed = torch.tensor([True, False, False, True]).reshape(1, 4, 1, 1, 1)
    assert grouping_loss(logits, allowed).item() == pytest.approx(0.5 * math.log(2))


def test_text_loss_of_a_query_that_says_its_class_is_small() -> None:
    bank = torch.eye(4)
    right = text_loss(bank[None, :2] * 7, bank, torch.tensor([0, 1]))
    wrong = text_loss(bank[None, :2] * 7, bank, torch.tensor([1, 0]))
    assert right.item() < 0.01 < 5 < wrong.item()
