from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditHead(_message.Message):
    __slots__ = ("records", "hash")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    records: int
    hash: str
    def __init__(self, records: _Optional[int] = ..., hash: _Optional[str] = ...) -> None: ...

class AboutRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AboutReply(_message.Message):
    __slots__ = ("unix_s", "release", "protocol", "flower", "bank_hash", "site", "audit_head")
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FLOWER_FIELD_NUMBER: _ClassVar[int]
    BANK_HASH_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HEAD_FIELD_NUMBER: _ClassVar[int]
    unix_s: float
    release: str
    protocol: int
    flower: str
    bank_hash: str
    site: str
    audit_head: AuditHead
    def __init__(self, unix_s: _Optional[float] = ..., release: _Optional[str] = ..., protocol: _Optional[int] = ..., flower: _Optional[str] = ..., bank_hash: _Optional[str] = ..., site: _Optional[str] = ..., audit_head: _Optional[_Union[AuditHead, _Mapping]] = ...) -> None: ...

class GetBankRequest(_message.Message):
    __slots__ = ("held_hash",)
    HELD_HASH_FIELD_NUMBER: _ClassVar[int]
    held_hash: str
    def __init__(self, held_hash: _Optional[str] = ...) -> None: ...

class BankPart(_message.Message):
    __slots__ = ("hash", "total_bytes", "content")
    HASH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    hash: str
    total_bytes: int
    content: bytes
    def __init__(self, hash: _Optional[str] = ..., total_bytes: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("bank_hash", "phrases")
    BANK_HASH_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    bank_hash: str
    phrases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bank_hash: _Optional[str] = ..., phrases: _Optional[_Iterable[str]] = ...) -> None: ...

class EncodeReply(_message.Message):
    __slots__ = ("bank_hash", "vectors")
    BANK_HASH_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    bank_hash: str
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    def __init__(self, bank_hash: _Optional[str] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("contract_json", "bank_hash", "audit_head")
    CONTRACT_JSON_FIELD_NUMBER: _ClassVar[int]
    BANK_HASH_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HEAD_FIELD_NUMBER: _ClassVar[int]
    contract_json: str
    bank_hash: str
    audit_head: AuditHead
    def __init__(self, contract_json: _Optional[str] = ..., bank_hash: _Optional[str] = ..., audit_head: _Optional[_Union[AuditHead, _Mapping]] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("is_accepted", "reasons", "sites", "audit_head")
    IS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HEAD_FIELD_NUMBER: _ClassVar[int]
    is_accepted: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    sites: _containers.RepeatedScalarFieldContainer[str]
    audit_head: AuditHead
    def __init__(self, is_accepted: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ..., sites: _Optional[_Iterable[str]] = ..., audit_head: _Optional[_Union[AuditHead, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("run", "after_round", "is_once")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    IS_ONCE_FIELD_NUMBER: _ClassVar[int]
    run: str
    after_round: int
    is_once: bool
    def __init__(self, run: _Optional[str] = ..., after_round: _Optional[int] = ..., is_once: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("round", "rounds", "is_done", "sites", "refused", "failed", "reasons", "loss", "seconds", "phase", "waiting_for", "is_silent", "is_over", "stage")
    class ReasonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    IS_DONE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    IS_SILENT_FIELD_NUMBER: _ClassVar[int]
    IS_OVER_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    round: int
    rounds: int
    is_done: bool
    sites: _containers.RepeatedScalarFieldContainer[str]
    refused: _containers.RepeatedScalarFieldContainer[str]
    failed: _containers.RepeatedScalarFieldContainer[str]
    reasons: _containers.ScalarMap[str, str]
    loss: float
    seconds: float
    phase: str
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    is_silent: bool
    is_over: bool
    stage: str
    def __init__(self, round: _Optional[int] = ..., rounds: _Optional[int] = ..., is_done: _Optional[bool] = ..., sites: _Optional[_Iterable[str]] = ..., refused: _Optional[_Iterable[str]] = ..., failed: _Optional[_Iterable[str]] = ..., reasons: _Optional[_Mapping[str, str]] = ..., loss: _Optional[float] = ..., seconds: _Optional[float] = ..., phase: _Optional[str] = ..., waiting_for: _Optional[_Iterable[str]] = ..., is_silent: _Optional[bool] = ..., is_over: _Optional[bool] = ..., stage: _Optional[str] = ...) -> None: ...
