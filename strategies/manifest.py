"""What is in a message, said without its values: names, shapes, bytes, and digests that prove which tensors they were.

A site and the coordinator describe equal tensors with equal digests, so their two audit logs can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from strategies.messages import CONFIG_KEY, ORDER, TEXT_HASH_KEY, unpack_arrays


def layout(arrays: Mapping[str, NDArray]) -> list[str]:
    """`name dtype shape` of every tensor, sorted by name."""
    return [f"{name} {array.dtype} {'x'.join(map(str, array.shape))}" for name, array in sorted(arrays.items())]


def manifest(content: RecordDict) -> dict[str, Any]:
    """Tensors in numbers and digests, metrics and other values by name and bytes; JSON-able.

    `layout` is the SHA-256 (hex) of the tensors' names, types and shapes, `content` of these and every value.

    Raises:
        MessageFault: tensors that cannot be read.
    """
    described: dict[str, Any] = {}
    for record in content.array_records.values():
        arrays = unpack_arrays(record)
        names = hashlib.sha256("\n".join(layout(arrays)).encode())
        values_too = names.copy()
        for _, array in sorted(arrays.items()):
            values_too.update(array.tobytes())
        described |= {
            "tensors": len(arrays),
            "bytes": sum(array.nbytes for array in arrays.values()),
            "layout": names.hexdigest(),
            "content": values_too.hexdigest(),
        }
    metrics = [name for record in content.metric_records.values() for name in record]
    values = {name: value for record in content.config_records.values() for name, value in record.items()}
    if metrics:
        described["metrics"] = sorted(metrics)
    if values:
        described["values"] = {name: _digest(value) for name, value in sorted(values.items())}
    return described


def order_hashes(content: RecordDict) -> dict[str, str]:
    """Hash of the text space and digest of the configuration that a message of the server names, if it does."""
    order = content.config_records.get(ORDER)
    found = {}
    if order is not None and TEXT_HASH_KEY in order:
        found["bank"] = str(order[TEXT_HASH_KEY])
    if order is not None and CONFIG_KEY in order:
        found["configuration"] = hashlib.sha256(str(order[CONFIG_KEY]).encode()).hexdigest()
    return found


def _digest(value: Any) -> dict[str, Any]:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
