"""The diffusion latent: nothing is lost, nothing is learned, and its scale suits a noise schedule."""

import torch

from dsm_core.model.haar import LATENT_CHANNELS, from_latent, to_latent


def test_round_trip_is_exact() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 1, 8, 6, 4)
    latent = to_latent(image)
    assert latent.shape == (2, LATENT_CHANNELS, 4, 3, 2)
    torch.testing.assert_close(from_latent(latent), image, atol=1e-6, rtol=0)


def test_even_tissue_has_no_details_and_its_brightness_in_the_first_channel() -> None:
    for value, wanted in ((0.0, -1.0), (0.5, 0.0), (1.0, 1.0)):
        latent = to_latent(torch.full((1, 1, 4, 4, 4), value))
        torch.testing.assert_close(latent[:, 0], torch.full((1, 2, 2, 2), wanted))
        assert latent[:, 1:].abs().max() < 1e-6
