"""A compiled kernel that gathers what a batch changed, in the columns of a delta."""

from __future__ import annotations

from numba import types, uint8, uint16, uint32

from jobs.windows._compile import compiled
from jobs.windows._layout import (
    LONGS_IN,
    STRINGS,
    TABLE,
    TABLE_IN,
    Bytes,
    Ints,
    Longs,
    Shorts,
    Words,
    read_only,
)

__all__ = ["gather_changed"]


@compiled(
    types.void(
        read_only(uint8), read_only(uint8), read_only(uint32), *STRINGS, LONGS_IN, LONGS_IN,
        LONGS_IN, TABLE_IN, uint8[::1], uint32[::1], uint16[::1], TABLE, uint8[::1],
    )
)  # fmt: skip
def gather_changed(
    changed: Bytes,
    kind: Bytes,
    valid: Words,
    key_data: Bytes,
    key_starts: Longs,
    key_lengths: Ints,
    times: Longs,
    ids: Longs,
    labels: Longs,
    raw: Longs,
    kinds_out: Bytes,
    valid_out: Words,
    lengths_out: Shorts,
    longs_out: Longs,
    keys_out: Bytes,
) -> None:
    """Copy the rows that are marked, in order: `longs_out` takes times, ids, labels and fields."""
    row = 0
    at = 0
    for i in range(len(changed)):
        if changed[i] == 0:
            continue
        kinds_out[row] = kind[i]
        valid_out[row] = valid[i]
        lengths_out[row] = key_lengths[i]
        longs_out[0, row] = times[i]
        longs_out[1, row] = ids[i]
        longs_out[2, row] = labels[i]
        for j in range(len(raw)):
            longs_out[3 + j, row] = raw[j, i]
        for j in range(key_starts[i], key_starts[i] + key_lengths[i]):
            keys_out[at] = key_data[j]
            at += 1
        row += 1
