"""What becomes of the memory that a training step frees? It stays with the process, ready for the next step."""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_KEPT = 32 << 20  # bytes of one tensor; glibc takes no more
_MOST_KEPT = 512 << 20  # bytes free at the top of the heap; beyond, they go back to the system


@cache
def keep_freed_memory() -> bool:
    """Tell the C library, once per process, to keep freed tensors of up to 32 MB, 512 MB in all.

    By itself it hands them back, and every step pays for fresh pages again: 4000 to 7000 page faults and a tenth of the
    time of a step of tiny on CPU.

    Returns:
        Whether the C library could be told; only glibc can.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no shared C library to ask, or another than glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, _MOST_KEPT))
