"""Compare and hash string columns in one pass, without making Python strings."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from schemas.columns import StringColumn

__all__ = ["equal_rows", "hash64"]


def equal_rows(left: StringColumn, right: StringColumn) -> NDArray[np.bool_]:
    """Return per row whether both columns hold the same bytes; a null equals nothing."""
    return _equal(left.data, left.starts, left.lengths, right.data, right.starts, right.lengths)


def hash64(column: StringColumn) -> NDArray[np.uint64]:
    """Return FNV-1a (64 bit) of each row, finished with an avalanche step; null hashes to 0.

    Stable across processes and releases: traffic shares and tokens may depend on it.
    """
    return _hash64(column.data, column.starts, column.lengths)


@njit(cache=True, nogil=True)
def _equal(
    left: NDArray[np.uint8],
    left_starts: NDArray[np.int64],
    left_lengths: NDArray[np.int32],
    right: NDArray[np.uint8],
    right_starts: NDArray[np.int64],
    right_lengths: NDArray[np.int32],
) -> NDArray[np.bool_]:
    rows = len(left_starts)
    equal = np.zeros(rows, np.bool_)
    for row in range(rows):
        length = left_lengths[row]
        if length < 0 or length != right_lengths[row]:
            continue
        at, other = left_starts[row], right_starts[row]
        same = True
        for index in range(length):
            if left[at + index] != right[other + index]:
                same = False
                break
        equal[row] = same
    return equal


@njit(cache=True, nogil=True)
def _hash64(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int32]
) -> NDArray[np.uint64]:
    rows = len(starts)
    hashes = np.zeros(rows, np.uint64)
    for row in range(rows):
        if lengths[row] < 0:
            continue
        value = np.uint64(0xCBF29CE484222325)
        for index in range(starts[row], starts[row] + lengths[row]):
            value = (value ^ np.uint64(data[index])) * np.uint64(0x100000001B3)
        # FNV's high bits are weak on short keys; this is the finaliser of MurmurHash3.
        value ^= value >> np.uint64(33)
        value *= np.uint64(0xFF51AFD7ED558CCD)
        value ^= value >> np.uint64(33)
        hashes[row] = value
    return hashes
