"""What leaves is listed: anything else is not packed, and each entry says why and what privacy makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from dsm_core.classes import ClassKind
from dsm_core.data import ClassContract, LabelContract
from dsm_core.data.fingerprint import Fingerprint
from strategies import messages
from strategies.leaving import WHAT_LEAVES, Private, UnlistedContent, check_leaving, leaving

ARRAYS = {"encoder.weight": np.zeros(3, np.float32), "encoder.weight@exp_avg_sq": np.zeros(3, np.float32)}
METRICS = {messages.LOSS: 0.5, messages.SECONDS: 2.0, messages.NUM_CASES: 3}


def test_every_entry_is_its_own_place_with_a_reason():
    assert len({(item.reply, item.place) for item in WHAT_LEAVES}) == len(WHAT_LEAVES)
    assert all(item.what and item.why for item in WHAT_LEAVES)


def test_open_training_may_send_tensors_moments_and_every_metric():
    check_leaving(messages.TRAIN, messages.pack_trained(ARRAYS, METRICS))


@pytest.mark.parametrize("metric", METRICS)
def test_private_training_sends_no_metric_at_all(metric):
    with pytest.raises(UnlistedContent, match=f"metrics/{metric} .* must not leave a site that trains privately"):
        messages.pack_trained(ARRAYS, {metric: METRICS[metric]}, is_private=True)
    assert messages.unpack_trained(messages.pack_trained(ARRAYS, {}, is_private=True))[1] == {}


@pytest.mark.parametrize("metric", ["grad-norm", "loss2", "worst-case"])
def test_metric_that_nobody_listed_is_not_packed(metric):
    with pytest.raises(UnlistedContent, match=f"metrics/{metric} of a train reply is not in WHAT_LEAVES"):
        messages.pack_trained(ARRAYS, {metric: 1.0})


@pytest.mark.parametrize("record", [ConfigRecord({"note": "x"}), MetricRecord({"n": 1}), ArrayRecord([np.zeros(1)])])
def test_further_record_in_an_update_is_found(record):
    content = RecordDict({**messages.pack_trained(ARRAYS, {}), "more": record})
    with pytest.raises(UnlistedContent, match="more/"):
        check_leaving(messages.TRAIN, content)


def test_label_contract_is_looked_into():
    classes = {"liver": ClassContract(ClassKind.ORGAN, None, 3)}
    for fingerprint in (None, Fingerprint()):
        messages.pack_contract(LabelContract("mercy", 3, classes, fingerprint).to_dict())
    contract = LabelContract("mercy", 3, classes).to_dict()
    with pytest.raises(UnlistedContent, match="order/contract/patients"):
        messages.pack_contract({**contract, "patients": ["doe"]})


def test_moments_and_tensors_are_inside_epsilon_and_counts_are_not():
    assert leaving("train", "arrays/a@exp_avg").what == "AdamW's moments of each tensor"
    assert leaving("train", "arrays/a").private is Private.NOISED
    assert leaving("query.enrol", "order/contract/classes/liver/cases").private is Private.DECLARED
    assert leaving("query.enrol", "metrics/loss") is None
