"""Decide which model scores which row: by route (tenant, channel), then by share of traffic."""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from schemas.columns import StringColumn

__all__ = ["hash_of_text", "hash_texts", "unit_interval", "warm"]

_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3
_MASK: Final = (1 << 64) - 1


def hash_of_text(text: str) -> int:
    """Return FNV-1a 64 of a text's UTF-8 bytes, as `hash_texts` does for a column."""
    value = _FNV_OFFSET
    for byte in text.encode():
        value = ((value ^ byte) * _FNV_PRIME) & _MASK
    return value


def hash_texts(column: StringColumn) -> NDArray[np.uint64]:
    """Return FNV-1a 64 of each text, 0 where it is null; shape (n,)."""
    return _hash_texts(column.data, column.starts, column.lengths)


def unit_interval(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map hashes evenly to [0, 1): the same entity always lands on the same point.

    Mixed once more (the finaliser of splitmix64), so that a hash also used to choose shards gives
    each shard the same share.
    """
    return _unit_interval(hashes)


# Read-only and strided types take any array, so one kernel serves batches and tables.
_SIGNATURE = nb.types.Array(nb.types.uint64, 1, "C")(
    nb.types.Array(nb.types.uint8, 1, "A", readonly=True),
    nb.types.Array(nb.types.int64, 1, "A", readonly=True),
    nb.types.Array(nb.types.int32, 1, "A", readonly=True),
)


@nb.njit(_SIGNATURE, cache=True, nogil=True)
def _hash_texts(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int32]
) -> NDArray[np.uint64]:
    out = np.zeros(len(starts), np.uint64)
    for row in range(len(starts)):
        if lengths[row] < 0:
            continue
        value = np.uint64(0xCBF29CE484222325)
        for offset in range(lengths[row]):
            value = (value ^ np.uint64(data[starts[row] + offset])) * np.uint64(0x100000001B3)
        out[row] = value
    return out


@nb.njit(cache=True, nogil=True)
def _unit_interval(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    out = np.empty(len(hashes), np.float64)
    for row in range(len(hashes)):
        value = hashes[row] + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
        out[row] = (value >> np.uint64(11)) * (1.0 / 9007199254740992.0)
    return out


def warm() -> None:
    """Compile (or load from cache) the kernels before the first batch."""
    _unit_interval(np.zeros(1, np.uint64))
    _hash_texts(np.zeros(1, np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int32))
