"""Secret randomness is normal where it should be, evenly spread where it should be, and a function of its key only."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from client.privacy.noise import KEY_BYTES, SecretStream, secret_key

KEY = bytes(range(KEY_BYTES))


def normals(stream, count):
    return torch.cat([block.clone() for block in stream.normal_blocks(count)]).numpy()


def test_normals_are_standard_normal_and_independent_of_their_neighbours():
    z = normals(SecretStream(KEY), 400_000)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / 400_000**0.5
    assert abs(z.var() - 1) < 4 * (2 / 400_000) ** 0.5
    assert abs(stats.kurtosis(z)) < 4 * (24 / 400_000) ** 0.5
    # Box and Muller make pairs from one radius: half a block apart.
    for lag in (1, 1 << 15, 1 << 16):
        assert abs(np.corrcoef(np.abs(z[:-lag]), np.abs(z[lag:]))[0, 1]) < 4 / (len(z) - lag) ** 0.5


def test_uniforms_are_even():
    u = SecretStream(KEY).uniforms(200_000)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_key_decides_and_no_number_comes_twice():
    first, again, other = SecretStream(KEY), SecretStream(KEY), SecretStream(secret_key())
    a, b = normals(first, 100_000), normals(first, 100_000)
    assert np.array_equal(a, normals(again, 100_000))
    assert len(np.intersect1d(a, b)) == 0
    assert len(np.intersect1d(a, normals(other, 100_000))) == 0


def test_default_key_is_fresh():
    assert SecretStream().seed() != SecretStream().seed()


def test_torch_keeps_too_little_of_a_seed_to_be_secret():
    # The reason for a stream of our own: should this fail one day, torch's generator has changed.
    seeds = (7, 7 + 2**32)
    a, b = (torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    assert torch.equal(a, b)
