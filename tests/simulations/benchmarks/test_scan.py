"""Does the scan benchmark compare like with like?"""

import pytest

from simulations.benchmarks.limits import limit_ms
from simulations.benchmarks.scan import METHODS, is_runnable, measure


@pytest.mark.parametrize("method", [m for m in METHODS if is_runnable(m)])
def test_every_method_computes_the_same_scan(method):
    row = measure(method, (2, 6, 20, 4))
    assert row.error < 1e-6
    assert row.gradient_error < 5e-6
    assert 0 < row.forward_ms <= row.both_ms * 2


def test_limit_counts_one_exponential_forward_and_three_in_all():
    forward, both = limit_ms((2, 10, 50, 4), {"exponentials_per_s": 1e6})
    assert (forward, both) == pytest.approx((4.0, 12.0))
