"""What a run starts from: evidence in the class rows, and at every stage moments beside what it trains."""

import numpy as np
import pytest
import torch

from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import ModelConfig, ServerConfig, TextConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.model import DSM, build_model
from dsm_core.stages import MOVING, STAGES
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace
from server.federation import first_arrays
from server.members import EVIDENCE
from strategies.averaging import MOMENT
from strategies.query_fedavg import QueryFedAvg, ServerState
from strategies.refusal import validate_reference

SMALL = ModelConfig(widths=(8, 8, 8, 8), mamba_blocks=(0, 0, 0, 1), decoder_width=8, query_width=8, mask_width=8)


def small_model() -> tuple[DSM, TextSpace]:
    text = build_text_space([describe_class(n) for n in ("kidney", "liver", "spleen")], TextConfig(encoder="offline"))
    torch.manual_seed(0)
    return build_model(SMALL, text), text


def contract(site: str, **cases: int) -> LabelContract:
    return LabelContract(site, 9, {name: ClassContract(ClassKind.ORGAN, None, n) for name, n in cases.items()})


def test_evidence_of_a_row_is_the_sum_over_the_sites_that_label_its_class() -> None:
    arrays = first_arrays(small_model()[0], {"a": contract("a", liver=2), "b": contract("b", liver=3, spleen=1)})
    np.testing.assert_array_equal(arrays["class_rows.evidence"], [0, 5, 1])


@pytest.mark.parametrize("stage", STAGES)
def test_moments_of_a_stage_lie_beside_every_tensor_that_it_trains(stage: str) -> None:
    model, text = small_model()
    state = ServerState(first_arrays(model, {}), text.names)
    state = QueryFedAvg(ServerConfig(), {}).begin_stage(state, MOVING[stage])
    validate_reference(state.arrays, class_count=3)
    learned = {key for key, tensor in model.state_dict(keep_vars=True).items() if tensor.requires_grad}
    moved = {key for key in MOVING[stage].part(state.arrays) if MOMENT not in key}
    assert {key.split(MOMENT)[0] for key in state.arrays if MOMENT in key} == moved & learned


def test_every_parameter_moves_in_some_stage_and_the_evidence_in_none() -> None:
    arrays = first_arrays(small_model()[0], {})
    moved = {key for moving in MOVING.values() for key in moving.part(arrays)}
    assert moved == set(arrays) - {EVIDENCE}
