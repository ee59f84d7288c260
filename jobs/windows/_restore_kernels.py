"""Compiled kernels for rebuilding a store from its log."""

from __future__ import annotations

from numba import int64

from jobs.windows._compile import compiled
from jobs.windows._layout import LONGS_IN, STRINGS, Bytes, Ints, Longs

__all__ = ["count_runs"]


@compiled(int64(*STRINGS, LONGS_IN))
def count_runs(data: Bytes, starts: Longs, lengths: Ints, hashes: Longs) -> int:
    """Count the rows whose key is not that of the row before: at least the number of keys.

    Keys are compared byte for byte, because room is made by this count and keys that share a hash
    can be made on purpose.
    """
    runs = 0
    for i in range(len(starts)):
        same = i > 0 and hashes[i] == hashes[i - 1] and lengths[i] == lengths[i - 1]
        if same:
            for j in range(int(lengths[i])):
                if data[starts[i] + j] != data[starts[i - 1] + j]:
                    same = False
                    break
        if not same:
            runs += 1
    return runs
