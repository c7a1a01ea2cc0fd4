"""Fingerprints of parts merge to the fingerprint of the whole."""

import json
import math

import numpy as np
import pytest

from dsm_core.data.fingerprint import BIN_HU, Fingerprint, case_fingerprint, merge, moments


def test_moments_by_hand():
    held = moments([1, 2, 3]) + moments([6])
    assert (held.count, held.total, held.squares) == (4, 12, 50)
    assert held.mean == 3
    assert held.sd == pytest.approx(math.sqrt(50 / 4 - 9))
    assert math.isnan(moments([]).mean)


def test_merging_sites_equals_pooling_their_cases():
    rng = np.random.default_rng(0)
    parts = [rng.normal(60, 40, 500).round() for _ in range(3)]
    cases = [case_fingerprint((1, 1, 2 + n), (100, 90 + n, 50), part) for n, part in enumerate(parts)]
    pooled, everything = merge(cases), np.concatenate(parts)
    assert pooled.cases == 3
    assert merge([merge(cases[:2]), cases[2]]) == pooled
    assert pooled.intensity_hu.mean == pytest.approx(everything.mean())
    assert pooled.intensity_hu.sd == pytest.approx(everything.std())
    assert [m.mean for m in pooled.spacing_mm] == [1, 1, 3]
    for share in (0.05, 0.5, 0.95):
        assert abs(pooled.quantile_hu(share) - np.quantile(everything, share)) <= BIN_HU
    assert Fingerprint.from_dict(json.loads(json.dumps(pooled.to_dict()))) == pooled


def test_values_beyond_the_bins_are_counted_at_the_ends():
    fingerprint = case_fingerprint((1, 1, 1), (2, 1, 1), np.array([-3000, 30000]))
    assert fingerprint.histogram[0] == fingerprint.histogram[-1] == 1
    assert math.isnan(Fingerprint().quantile_hu(0.5))


@pytest.mark.parametrize("broken", [{}, {"histogram": [1]}, None, {**Fingerprint().to_dict(), "size": [[1, 2]]}])
def test_anything_else_is_refused(broken):
    with pytest.raises(ValueError, match="not a fingerprint"):
        Fingerprint.from_dict(broken)
