"""Does the benchmark of private steps compare like with like? Without noise every method releases the same gradient."""

from __future__ import annotations

import pytest
import torch

from dsm_core.config import ModelConfig
from simulations.benchmarks.dp_methods import METHODS, OPEN, OURS, Work, moving
from simulations.benchmarks.dp_step import measure_times

SMALL = ModelConfig(widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)


pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


def released(method, work):
    trainer, step = METHODS[method](work, 1e-12)
    step()
    return torch.cat([parameter.grad.flatten() for parameter in moving(trainer.model)])


@pytest.mark.parametrize("patches", [1, 2])
def test_opacus_releases_what_we_release(patches):
    work = Work(2, patches, 32, SMALL)
    ours = released(OURS, work)
    for method in set(METHODS) - {OPEN, OURS}:
        if "opacus hooks" in method or patches == 1:
            assert (released(method, work) - ours).norm() < 1e-3 * ours.norm(), method


def test_method_that_cannot_be_taken_is_a_row_with_its_reason():
    rows = {row["method"]: row for row in measure_times(Work(2, 2, 16, SMALL), repeats=1)}
    assert rows.keys() == METHODS.keys()
    assert rows[OURS]["times"] > 0
    assert "cannot average a patient's patches" in rows["opacus ghost"]["note"]
