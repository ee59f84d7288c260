"""Where things stand in the arrays of a window store, and the types of those arrays.

A key's log is one contiguous *region* of an int64 arena: `capacity` rows of `columns` words, so
that an event's time and prefix sums come with one cache line: of 1e5 keys nothing is in the cache,
and lines are what an event costs. Row `head` is a sentinel that carries the prefix sums of all that
was pruned; the entries are rows `head + 1` to `last`, ordered by event time and, where times are
equal, by arrival. A sum over a window is the difference of two rows of a prefix column, exact in
wrapping 64-bit arithmetic whatever was pruned before. Regions of one size are recycled through free
lists. From 8 rows on, a region ends with a small Bloom filter of event ids.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import float64, int32, int64, types, uint8, uint32
from numpy.typing import NDArray

__all__ = [
    "AHEAD",
    "ARENA_TOP",
    "BASE",
    "BLOOM_FROM",
    "CAPACITY",
    "CHANGED",
    "CHANGED_BYTES",
    "CLOCK",
    "COLUMNS",
    "CURSOR",
    "DUPLICATE",
    "EDGE_HINT",
    "EDGE_HINTS",
    "FIRST_CAPACITY",
    "FREE_REGIONS",
    "FREE_SLOT",
    "FREE_WAIT",
    "HASH",
    "HEAD",
    "HINT",
    "HORIZON",
    "HOT_EVENTS",
    "KEYS",
    "KEY_AT",
    "KEY_LENGTH",
    "KEY_ROOM",
    "KEY_TOP",
    "LABEL_CLOCK",
    "LABEL_COLUMN",
    "LARGEST",
    "LAST",
    "LATE",
    "LATITUDE",
    "LONGEST_KEY",
    "LONGITUDE",
    "LONGS",
    "LONGS_IN",
    "LONG_FROM",
    "META_WIDTH",
    "NEED",
    "NEVER",
    "NEWEST",
    "NULL_KEY",
    "OP_CHANGE",
    "OP_COUNT",
    "OP_DECAYED_COUNT",
    "OP_DECAYED_SUM",
    "OP_DISTANCE",
    "OP_DISTINCT",
    "OP_FIRST_SEEN_KEY",
    "OP_FIRST_SEEN_VALUE",
    "OP_LAST",
    "OP_MAX",
    "OP_MEAN",
    "OP_MIN",
    "OP_RATIO",
    "OP_SINCE_FIRST",
    "OP_SINCE_LAST",
    "OP_SPEED",
    "OP_STD",
    "OP_SUM",
    "OP_ZSCORE",
    "PLAN_WIDTH",
    "PROCESS",
    "PRUNE",
    "PRUNE_SLOTS",
    "REACH",
    "ROWS",
    "SLOTS",
    "SLOT_WIDTH",
    "STALE_LABEL",
    "STRINGS",
    "TABLE",
    "TABLE_IN",
    "TILE",
    "TILED",
    "TOO_LATE",
    "TRUNCATED",
    "UNKNOWN_LABEL",
    "WAITING",
    "WAITS",
    "WEIGHT_COLUMN",
    "Bytes",
    "Floats",
    "Ints",
    "Longs",
    "Shorts",
    "Words",
    "read_only",
]

Bytes: TypeAlias = NDArray[np.uint8]
"""Key bytes, row kinds, flags."""
Ints: TypeAlias = NDArray[np.int32]
"""Lengths of strings."""
Shorts: TypeAlias = NDArray[np.uint16]
"""Lengths of keys as a chunk holds them."""
Words: TypeAlias = NDArray[np.uint32]
"""Validity, one bit per field."""
Longs: TypeAlias = NDArray[np.int64]
"""Times, hashes, prefix sums and tables."""
Floats: TypeAlias = NDArray[np.float64]
"""The arena seen as coordinates, and features."""

# Columns of `slots`, one row per key; slot 0 is the scratch log of events that are not counted.
# Two cache lines: what every event reads, and what few read with the hints of where windows begin.
BASE, CAPACITY, HEAD, LAST, HASH, KEY_AT, KEY_LENGTH, NEWEST, WAITING, HINT, KEY_ROOM, EDGE_HINT = (
    range(12)
)
SLOT_WIDTH = 16
# Rows looked up at once: what they touch, about 700 bytes each, must fit the second-level cache.
AHEAD = 256
# Window edges beyond these are searched for from scratch.
EDGE_HINTS = SLOT_WIDTH - EDGE_HINT
# Cells of `meta`.
CLOCK, SLOTS, FREE_SLOT, ARENA_TOP, KEY_TOP, KEYS, WAITS, FREE_WAIT, CURSOR, NEED, LARGEST, ROWS = (
    range(12)
)
# What the last batch changed: rows, the bytes of their keys, and the newest time of its labels.
CHANGED, CHANGED_BYTES, LABEL_CLOCK = range(12, 15)
FREE_REGIONS = 16
META_WIDTH = 64
# Slots looked at after every batch for keys to drop: a pass over a million keys takes 60 k batches
# and costs a batch about 1 us.
PRUNE_SLOTS = 16
# Cells of `plan`.
(
    COLUMNS,
    LABEL_COLUMN,
    HORIZON,
    REACH,
    HOT_EVENTS,
    TILE,
    WEIGHT_COLUMN,
    LATITUDE,
    LONGITUDE,
) = range(9)
PLAN_WIDTH = 9
NEVER = -(1 << 62)
FIRST_CAPACITY = 4
# What the u16 of a chunk holds; a longer key is treated as none.
LONGEST_KEY = 65_535
# Below 8 rows one pass over the ids costs less than keeping a filter of them.
BLOOM_FROM = 8
# A log this long has twice as large a filter and looks at two words of it: at 3 wrong answers in
# 1,000 a key with half of a stream would be read from end to end for every other batch.
LONG_FROM = 4096

# The bits of `RowFlag`; a kernel cannot read an enum.
DUPLICATE, LATE, TOO_LATE, UNKNOWN_LABEL, NULL_KEY, TRUNCATED, TILED, STALE_LABEL = (
    1, 2, 4, 8, 16, 32, 64, 128,
)  # fmt: skip

(
    OP_COUNT,
    OP_SUM,
    OP_MEAN,
    OP_RATIO,
    OP_MIN,
    OP_MAX,
    OP_STD,
    OP_ZSCORE,
    OP_DISTINCT,
    OP_LAST,
    OP_SINCE_LAST,
    OP_SINCE_FIRST,
    OP_CHANGE,
    OP_DECAYED_COUNT,
    OP_DECAYED_SUM,
    OP_FIRST_SEEN_KEY,
    OP_FIRST_SEEN_VALUE,
    OP_DISTANCE,
    OP_SPEED,
) = range(19)


def read_only(kind: types.Type, dimensions: int = 1) -> types.Array:
    """Return the type of an array that a kernel only reads."""
    # A plain array passes where a read-only one is declared; the reverse would compile again.
    return types.Array(kind, dimensions, "C", readonly=True)


# Explicit types: one compilation, whatever the arrays of a batch are made of.
LONGS, TABLE = int64[::1], int64[:, ::1]
LONGS_IN, TABLE_IN = read_only(int64), read_only(int64, 2)
STRINGS = (read_only(uint8), LONGS_IN, read_only(int32))
PROCESS = int64(
    int64, read_only(uint8), LONGS, *STRINGS, LONGS_IN, LONGS_IN, TABLE_IN,
    read_only(uint32), LONGS, LONGS, TABLE, uint8[::1], TABLE, LONGS, LONGS, float64[::1],
    LONGS_IN, TABLE_IN, TABLE_IN, TABLE_IN, read_only(float64), LONGS_IN, TABLE_IN, TABLE_IN,
    read_only(float64, 2), TABLE, float64[:, ::1], uint8[::1], uint8[::1],
)  # fmt: skip
PRUNE = int64(int64, LONGS, TABLE, TABLE, LONGS, LONGS, LONGS_IN)
