"""How is the C library of `csrc` called? A ctypes door to what the package build makes if it finds a compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_MULTIPLICATIONS_PER_THREAD = 1 << 19  # work worth a thread of its own: starting one costs about 30 microseconds


class CallShape(ctypes.Structure):
    """`call_shape` of selective_scan.c."""

    _fields_ = [(name, ctypes.c_int64) for name in "batch length channels threads groups_per_tile width".split()]


def call_structure(name: str, sizes: str, inputs: str, strides: str, outputs: str) -> type[ctypes.Structure]:
    """A structure of one kernel's arguments: field names as in selective_scan.c, in its order."""
    fields: list[Any] = [("shape", CallShape)]
    fields += [(field, ctypes.c_int64) for field in sizes.split()]
    fields += [(field, ctypes.c_void_p) for field in inputs.split()]
    fields += [(field, ctypes.c_int64) for field in strides.split()]
    fields += [(field, ctypes.c_void_p) for field in outputs.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@cache
def _load() -> ctypes.CDLL | None:
    spec = find_spec("dsm_core.model._selective_scan")
    if spec is None or spec.origin is None:
        return None
    try:
        loaded = ctypes.CDLL(spec.origin)
        loaded.scan_choose.restype = ctypes.c_char_p
        loaded.scan_starts_size.restype = loaded.scan_tiles.restype = ctypes.c_int64
        loaded.scan_starts_size.argtypes = [ctypes.c_int64] * 4
        loaded.scan_tiles.argtypes = [ctypes.c_int64] * 3
        loaded.scan_exponentials.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        loaded.scan_exponentials.restype = None
    except (OSError, AttributeError):  # it does not load here, or is older than this file
        return None
    return loaded


def is_available() -> bool:
    """Whether the C library was built and loads."""
    return _load() is not None


def kernels() -> ctypes.CDLL:
    """The C library.

    Raises:
        RuntimeError: it was not built.
    """
    loaded = _load()
    if loaded is None:
        raise RuntimeError("the native kernels were not built (no C compiler at install time); use the torch backend")
    return loaded


def instruction_set() -> str:
    """Name of the instruction set that the kernels use on this machine: "avx512", "avx2" or "baseline"."""
    return kernels().scan_choose(-1).decode()


def exponentials(x: Tensor, out: Tensor) -> Tensor:
    """e^x of a dense float32 CPU tensor, one thread, by the arithmetic that the scan uses; written to `out`."""
    kernels().scan_exponentials(x.data_ptr(), out.data_ptr(), x.numel())
    return out


def threads_for(multiplications: int) -> int:
    """Threads of one call: those of PyTorch, as long as each has enough to do."""
    return max(1, min(torch.get_num_threads(), multiplications // _MULTIPLICATIONS_PER_THREAD))


def dense_rows(tensor: Tensor) -> Tensor:
    """The tensor with its last axis dense, which is all that the kernels ask for."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def call(name: str, arguments: ctypes.Structure, tensors: Mapping[str, Tensor | None]) -> None:
    """Runs a kernel on float32 CPU tensors; the interpreter lock is released meanwhile.

    Args:
        name: function of the library.
        arguments: its structure, sizes and strides filled in.
        tensors: field name to tensor; None leaves a null pointer.
    """
    for field, tensor in tensors.items():
        if tensor is not None:
            setattr(arguments, field, tensor.data_ptr())
    status = getattr(kernels(), name)(ctypes.byref(arguments))
    if status == 1:
        raise MemoryError(f"{name}: no memory for the kernel's work space")
    if status == 2:
        raise ValueError(f"{name}: the native kernel takes at most 256 states and 16 taps; use the torch backend")
