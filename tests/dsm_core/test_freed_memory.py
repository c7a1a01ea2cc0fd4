"""Does memory that a step frees serve the next one?"""

import resource

import pytest
import torch

from dsm_core.freed_memory import keep_freed_memory


def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(not keep_freed_memory(), reason="another C library than glibc")
def test_freed_tensors_are_used_again_without_fresh_pages():
    def step():
        return sum(t.sum() for t in [torch.ones(2 << 20) for _ in range(4)])  # four times 8 MB, 8192 pages in all

    for _ in range(3):
        step()
    before = page_faults()
    for _ in range(10):
        step()
    assert page_faults() - before < 0.2 * 10 * 8192
