"""How do many tensors travel as one? Their bytes in a row, and beside it an index of names, types and shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

INDEX = "index"
TENSORS = "tensors"


class MessageFault(ValueError):
    """A message that does not hold what its kind promises."""


def pack_arrays(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Named arrays as Flower carries them: all bytes in a row, and an index of names, types and shapes.

    Flower sends every Array of a record, and every part of one, in an HTTP request of its own, at every hop: some 1600
    for the 793 tensors of `tiny` and its moments, nine when they stand in a row.
    """
    index = json.dumps([[name, array.dtype.str, array.shape] for name, array in arrays.items()])
    content = b"".join(array.tobytes() for array in arrays.values())
    return ArrayRecord({INDEX: _bytes(index.encode()), TENSORS: _bytes(content)})


def unpack_arrays(record: ArrayRecord) -> dict[str, NDArray]:
    """Named arrays, writable.

    Raises:
        MessageFault: an index that is none, or that does not fit the bytes.
    """
    arrays, start = {}, 0
    try:
        content = record[TENSORS].data
        for name, kind, shape in json.loads(record[INDEX].data):
            dtype, count = np.dtype(kind), math.prod(shape)
            if dtype.kind not in "biuf" or min(shape, default=0) < 0:
                raise MessageFault(f"tensor {str(name)[:80]!r} is of type {dtype} and shape {shape}")
            arrays[str(name)] = np.frombuffer(content, dtype, count, start).reshape(shape).copy()
            start += count * dtype.itemsize
    except MessageFault:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise MessageFault("a tensor could not be read from its bytes") from error
    if start != len(content):
        raise MessageFault(f"the tensors came with {len(content)} bytes, and their index tells of {start}")
    return arrays


def tensor_names(record: ArrayRecord) -> list[str]:
    """The names in a record's index; of a record without an index, its keys.

    Raises:
        MessageFault: an index that is none.
    """
    if INDEX not in record:
        return list(record)
    try:
        return [str(name) for name, _, _ in json.loads(record[INDEX].data)]
    except (ValueError, TypeError) as error:
        raise MessageFault("the index of the tensors cannot be read") from error


def _bytes(content: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(content),), stype="bytes", data=content)
