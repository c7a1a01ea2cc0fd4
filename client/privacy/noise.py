"""Where does the randomness of private training come from? A cipher's key stream, not a simulation's generator.

PyTorch's CPU generator keeps 32 bits of its seed, so whoever sees an update could try every seed and subtract the
noise. Here 256 secret bits key AES in counter mode. Normal numbers are made and added in float64 before rounding to
float32: many noises lead to one output, so that the gaps between floating-point normals (Mironov 2012,
doi:10.1145/2382196.2382264) do not show. That is a mitigation, not a proof.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

KEY_BYTES = 32
_BLOCK = 1 << 16  # numbers a block, which stays in the processor's cache
_UNIT = 2.0**-53


def secret_key() -> bytes:
    """A fresh key from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


class SecretStream:
    """Random numbers of a key; the same key gives the same numbers, which only tests want."""

    def __init__(self, key: bytes | None = None) -> None:
        self._cipher = Cipher(algorithms.AES(key or secret_key()), modes.CTR(bytes(16))).encryptor()
        self._bits = torch.empty(_BLOCK, dtype=torch.int64)
        self._normals = torch.empty(_BLOCK, dtype=torch.float64)

    def seed(self) -> int:
        """128 bits, for a generator of what needs no secrecy of its own, such as where patches lie."""
        return int.from_bytes(self._bytes(16), "little")

    def uniforms(self, count: int) -> np.ndarray:
        """(count,) float64, evenly in [0, 1)."""
        return (np.frombuffer(self._bytes(8 * count), np.uint64) >> np.uint64(11)) * _UNIT

    def normal_blocks(self, count: int) -> Iterator[Tensor]:
        """Standard normal numbers, `count` in all, as float64 blocks that are overwritten by the next."""
        for start in range(0, count, _BLOCK):
            yield self._normal_block()[: min(_BLOCK, count - start)]

    def _normal_block(self) -> Tensor:
        """Box and Muller 1958, doi:10.1214/aoms/1177706645, from 53 bits a uniform."""
        words = torch.frombuffer(bytearray(self._bytes(8 * _BLOCK)), dtype=torch.int64)
        torch.bitwise_and(words, (1 << 53) - 1, out=self._bits)
        half, z = _BLOCK // 2, self._normals
        z.copy_(self._bits)
        radius = z[:half].add(1.0).mul_(_UNIT).log_().mul_(-2.0).sqrt_()  # of (0, 1]
        angle = z[half:].mul(2.0 * math.pi * _UNIT)
        torch.mul(radius, angle.cos(), out=z[:half])
        torch.mul(radius, angle.sin_(), out=z[half:])
        return z

    def _bytes(self, count: int) -> bytes:
        return self._cipher.update(bytes(count))
