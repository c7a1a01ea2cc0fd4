"""The tissue prior: it learns what healthy tissue looks like, and a planted ball departs from it."""

import pytest
import torch

from dsm_core.model.anatomy import Anatomy, read_anatomy
from dsm_core.model.diffusion import Denoiser, TissuePrior, draw_corruption, standardise
from dsm_core.model.prompt import PROMPT_CHANNELS, visual_prompt

WORDS = torch.nn.functional.normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def organ_with_rim(count: int, ball: float = 0.0) -> tuple[torch.Tensor, Anatomy, torch.Tensor]:
    """A round organ with a dark rim and a bright core, in some scans with a ball darker by `ball` in the core."""
    generator = torch.Generator().manual_seed(count)
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    radius = (grid - 15.5).norm(dim=0)
    inside, planted = radius < 13, (grid - torch.tensor([17.5, 15.5, 15.5])[:, None, None, None]).norm(dim=0) < 4
    image = torch.where(inside, torch.where(radius < 9, 0.6, 0.4), torch.tensor(0.1)) - ball * planted
    image = image + 0.01 * torch.randn(count, 1, 32, 32, 32, generator=generator)
    return image, read_anatomy(image, inside.float().expand(count, 1, -1, -1, -1)), planted


def prior(refine_steps: int = 1) -> TissuePrior:
    torch.manual_seed(0)
    return TissuePrior(Denoiser(8, (8, 16, 16)), refine_steps)


@pytest.fixture(scope="module")
def trained() -> TissuePrior:
    model, generator = prior(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, betas=(0.9, 0.99))
    image, anatomy, _ = organ_with_rim(2)
    healthy = torch.ones_like(anatomy.level)
    for _ in range(120):
        loss = model(image, anatomy, WORDS, healthy, draw_corruption(2, (16, 16, 16), generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_ball_departs_from_learned_anatomy_more_clearly_than_from_the_mean_of_its_organ(trained: TissuePrior) -> None:
    # The ball is as dark as the rim: against the mean of its organ alone it is nothing special.
    image, anatomy, planted = organ_with_rim(1, ball=0.2)
    ball = torch.nn.functional.avg_pool3d(planted[None, None].float(), 2)[0, 0] > 0.9
    organ = anatomy.organs[0, 0] > 0.9
    residual = standardise(trained.residual(image, anatomy, WORDS)[0], anatomy)[0, 0].abs()
    trivial = anatomy.deviation[0].mean(0).abs()
    stands_out = [float((part[ball].mean() > part[organ & ~ball]).float().mean()) for part in (residual, trivial)]
    assert stands_out[0] > 0.95
    assert stands_out[0] > stands_out[1] + 0.3


def test_prompt_of_an_untrained_prior_has_no_residual_and_keeps_the_trivial_deviation() -> None:
    image, anatomy, _ = organ_with_rim(1)
    channels, hidden = visual_prompt(prior(), image, anatomy, WORDS)
    assert channels.shape == (1, PROMPT_CHANNELS, 16, 16, 16)
    assert channels[:, :8].abs().max() == 0
    assert hidden.abs().max() == 0
    torch.testing.assert_close(channels[:, 8:16] * 3, anatomy.deviation)


def test_tumor_voxels_teach_nothing(trained: TissuePrior) -> None:
    image, anatomy, planted = organ_with_rim(1, ball=0.2)
    healthy = 1 - torch.nn.functional.max_pool3d(planted[None, None].float(), 2)
    corruption = draw_corruption(1, (16, 16, 16), torch.Generator().manual_seed(3))
    corruption.hidden[:] = 1
    changed = image - 0.3 * planted
    losses = [float(trained(scan, anatomy, WORDS, healthy, corruption)) for scan in (image, changed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_residual_is_zero_off_the_organs_and_the_same_every_time(trained: TissuePrior) -> None:
    image, anatomy, _ = organ_with_rim(1)
    once, again = (trained.residual(image, anatomy, WORDS)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert once[0, :, 0, 0, 0].abs().max() == 0


def test_ddim_refinement_takes_its_steps(trained: TissuePrior) -> None:
    image, anatomy, _ = organ_with_rim(1)
    refined = prior(refine_steps=3)
    refined.load_state_dict(trained.state_dict())
    residual, _ = refined.residual(image, anatomy, WORDS)
    assert torch.isfinite(residual).all()
    assert not torch.equal(residual, trained.residual(image, anatomy, WORDS)[0])
