"""What travels between server and sites: every key of the wire, with pack and unpack side by side.

    enrol    query.enrol  server: protocol, held-out share      site: label contract (JSON)
    text     query.text   server: text space (bytes) and hash   site: hash of what it now holds
    train    train        server: tensors and one TrainOrder    site: tensors and metrics

A train message holds every tensor of the model, its answer those that move in the stage of the order and no other
(`strategies.moving`). With `share_moments` both hold AdamW's moments of these too (`averaging.MOMENT`).

A site that cannot serve an order answers with an error of one of the codes below, never with a path or a patient.
Whatever a site packs is checked against `strategies.leaving.WHAT_LEAVES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from dsm_core.config import (
    Config,
    DataConfig,
    ModelConfig,
    PriorConfig,
    PrivacyConfig,
    TrainConfig,
    TumorsConfig,
)
from dsm_core.stages import STAGES
from strategies.leaving import check_leaving
from strategies.tensor_row import MessageFault, pack_arrays, unpack_arrays

PROTOCOL = 3

ENROL = "query.enrol"
TEXT = "query.text"
TRAIN = "train"

ARRAYS = "arrays"
METRICS = "metrics"
ORDER = "order"

VERSION_KEY = "protocol"
HELD_OUT_KEY = "held-out"
CONTRACT_KEY = "contract"
TEXT_HASH_KEY = "text-hash"
TEXT_BYTES_KEY = "text-space"
CONFIG_KEY = "config"

NUM_CASES = "num-cases"
LOSS = "loss"
SECONDS = "seconds"

FAULT_CODE = 100  # the site could not do what was asked; the reason says why
TEXT_CODE = 101  # the site holds no text space, or another one than the order names
BUDGET_CODE = 102  # the site's privacy ledger does not allow what was asked; the reason says no more than that
BUDGET_REASON = "refused: budget"

_SITE_PARTS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "prior": PriorConfig,
    "tumors": TumorsConfig,
    "privacy": PrivacyConfig,
}


class StaleTextSpace(MessageFault):
    """The site holds another text space than the server names, or none."""


@dataclass(frozen=True)
class TrainOrder:
    """What the server asks of a site in one round.

    Attributes:
        round: counts from 1, through all stages.
        rounds: of the whole run, all stages together.
        stage: what is trained, one of `dsm_core.stages.STAGES`.
        stage_round, stage_rounds: the same, counted within the stage.
        lr: base learning rate of the stage; the site derives the round's rate from it and its TrainConfig.
        seed: of the run.
        share_moments: AdamW's moments travel with the tensors; otherwise they live on at the site between rounds.
    """

    round: int
    rounds: int
    stage: str
    stage_round: int
    stage_rounds: int
    lr: float
    local_steps: int
    seed: int
    share_moments: bool = False


@dataclass(frozen=True)
class TrainRequest:
    """A train message, unpacked."""

    arrays: dict[str, NDArray]
    order: TrainOrder
    text_hash: str
    config: str


def pack_enrol(held_out: float = 0.0) -> RecordDict:
    """The question for a site's label contract, which counts no case of the share that the run holds out."""
    return RecordDict({ORDER: ConfigRecord({VERSION_KEY: PROTOCOL, HELD_OUT_KEY: float(held_out)})})


def unpack_enrol(content: RecordDict) -> float:
    """Share of the site's cases that the run holds out.

    Raises:
        MessageFault: the server speaks another version, or the share is none.
    """
    version = _value(content, VERSION_KEY, int)
    if version != PROTOCOL:
        raise MessageFault(f"server speaks protocol {version}, this site {PROTOCOL}; install the same release on both")
    held_out = _value(content, HELD_OUT_KEY, float)
    if not 0 <= held_out < 1:
        raise MessageFault(f"{HELD_OUT_KEY} wants a share in [0, 1), found {held_out}")
    return held_out


def pack_contract(contract: Mapping[str, Any]) -> RecordDict:
    content = RecordDict({ORDER: ConfigRecord({CONTRACT_KEY: json.dumps(contract, sort_keys=True)})})
    check_leaving(ENROL, content)
    return content


def unpack_contract(content: RecordDict) -> dict[str, Any]:
    """The label contract of a site as a JSON-able dict.

    Raises:
        MessageFault: no contract, or no JSON object.
    """
    try:
        contract = json.loads(_value(content, CONTRACT_KEY, str))
    except json.JSONDecodeError as error:
        raise MessageFault("the label contract is no JSON") from error
    if not isinstance(contract, dict):
        raise MessageFault(f"the label contract is a {type(contract).__name__}, wanted an object")
    return contract


def pack_text(text: bytes, text_hash: str) -> RecordDict:
    return RecordDict({ORDER: ConfigRecord({TEXT_BYTES_KEY: text, TEXT_HASH_KEY: text_hash})})


def unpack_text(content: RecordDict) -> tuple[bytes, str]:
    """Bytes of a text space and the hash that it should have."""
    return _value(content, TEXT_BYTES_KEY, bytes), _value(content, TEXT_HASH_KEY, str)


def pack_text_receipt(text_hash: str) -> RecordDict:
    content = RecordDict({ORDER: ConfigRecord({TEXT_HASH_KEY: text_hash})})
    check_leaving(TEXT, content)
    return content


def unpack_text_receipt(content: RecordDict) -> str:
    return _value(content, TEXT_HASH_KEY, str)


def pack_train(arrays: ArrayRecord, order: TrainOrder, text_hash: str, config: str) -> RecordDict:
    """An order to train; the packed tensors are shared by the messages of all sites."""
    return RecordDict(
        {ARRAYS: arrays, ORDER: ConfigRecord({**asdict(order), TEXT_HASH_KEY: text_hash, CONFIG_KEY: config})}
    )


def unpack_train(content: RecordDict) -> TrainRequest:
    """The order, its tensors, the hash of the text space that it assumes, and the configuration as JSON.

    Raises:
        MessageFault: a part is missing, or a stage that this release does not know.
    """
    order = TrainOrder(
        round=_value(content, "round", int),
        rounds=_value(content, "rounds", int),
        stage=_value(content, "stage", str),
        stage_round=_value(content, "stage_round", int),
        stage_rounds=_value(content, "stage_rounds", int),
        lr=_value(content, "lr", float),
        local_steps=_value(content, "local_steps", int),
        seed=_value(content, "seed", int),
        share_moments=_value(content, "share_moments", bool),
    )
    if order.stage not in STAGES:
        raise MessageFault(
            f"the order is of stage {order.stage!r}, this site knows {', '.join(STAGES)}; "
            "install the same release on both"
        )
    if ARRAYS not in content.array_records:
        raise MessageFault(f"a train order carries the record {ARRAYS!r}; found {sorted(content)}")
    return TrainRequest(
        unpack_arrays(content.array_records[ARRAYS]),
        order,
        _value(content, TEXT_HASH_KEY, str),
        _value(content, CONFIG_KEY, str),
    )


def pack_trained(arrays: Mapping[str, NDArray], metrics: Mapping[str, Any], is_private: bool = False) -> RecordDict:
    """Tensors and metrics after local training: one ArrayRecord and one MetricRecord, as Flower's checks want.

    Raises:
        UnlistedContent: a metric that must not leave.
    """
    content = RecordDict({ARRAYS: pack_arrays(arrays), METRICS: MetricRecord(dict(metrics))})
    check_leaving(TRAIN, content, is_private)
    return content


def unpack_trained(content: RecordDict) -> tuple[dict[str, NDArray], dict[str, Any]]:
    if ARRAYS not in content.array_records or METRICS not in content.metric_records:
        raise MessageFault(f"an update carries the records {ARRAYS!r} and {METRICS!r}; found {sorted(content)}")
    return unpack_arrays(content.array_records[ARRAYS]), dict(content.metric_records[METRICS])


def error_reply(code: int, reason: str, message: Message) -> Message:
    """The site's refusal of a message; `reason` names neither path nor patient."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def pack_config(config: Config) -> str:
    """What a site must know of the run's configuration; paths and deadlines of the server stay there."""
    return json.dumps({part: asdict(getattr(config, part)) for part in _SITE_PARTS}, sort_keys=True)


def unpack_config(text: str) -> Config:
    """A configuration with the server's parts that concern a site, defaults elsewhere.

    Raises:
        MessageFault: the two sides know different knobs.
        ConfigError: a value outside its range.
    """
    try:
        parts = json.loads(text)
        return Config(**{part: kind(**parts[part]) for part, kind in _SITE_PARTS.items()})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MessageFault(
            "the server's configuration has other knobs than this site's release; install the same release on both"
        ) from error


def _value(content: RecordDict, key: str, kind: type) -> Any:
    value = content.config_records.get(ORDER, ConfigRecord()).get(key)
    if not isinstance(value, kind):
        raise MessageFault(f"the message wants {key!r} as {kind.__name__}, found {type(value).__name__}")
    return value
