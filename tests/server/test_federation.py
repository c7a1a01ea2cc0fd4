"""What a run starts from: evidence in the class rows, and moments at zero beside every trained tensor."""

import numpy as np
import torch

from client.trainer import Trainer
from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import ModelConfig, TextConfig, TrainConfig
from dsm_core.data import ClassContract, LabelContract
from dsm_core.model import DSM, build_model
from dsm_core.text_space import TextSpace, build_text_space
from server.federation import first_arrays, first_moments
from strategies.averaging import MOMENT
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


def test_first_moments_are_zero_and_lie_beside_every_tensor_that_a_site_trains() -> None:
    model, text = small_model()
    moments = first_moments(model)
    assert all(array.dtype == np.float32 and not array.any() for array in moments.values())
    validate_reference({**first_arrays(model, {}), **moments}, class_count=3)
    trainer = Trainer(model, text, TrainConfig(), ("liver",))
    trainer.load_moments(moments, steps=0)
    assert trainer.moments().keys() == moments.keys()
    assert {key.split(MOMENT)[0] for key in moments} == set(model.state_dict()) - {"class_rows.evidence"}
