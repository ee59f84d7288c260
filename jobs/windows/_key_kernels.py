"""Compiled kernels over the keys of a store: an open-addressing table over exact key bytes."""

from __future__ import annotations

import numpy as np
from numba import int64, types

from jobs.windows._compile import compiled, inlined, kernel
from jobs.windows._layout import (
    BASE,
    CAPACITY,
    EDGE_HINT,
    EDGE_HINTS,
    FREE_SLOT,
    HASH,
    HEAD,
    HINT,
    KEY_AT,
    KEY_LENGTH,
    KEY_ROOM,
    KEY_TOP,
    KEYS,
    LAST,
    LONGS,
    NEVER,
    NEWEST,
    SLOTS,
    STRINGS,
    WAITING,
    Bytes,
    Ints,
    Longs,
)

__all__ = [
    "create_slot",
    "drop_slot",
    "find_slot",
    "hash_batch",
    "hash_bytes",
    "hash_column",
    "same_bytes",
]


@inlined
def _eight_bytes(data: Bytes, at: int) -> np.uint64:
    # Written out, this is one load; an unsigned index is never taken to count from the end.
    u = np.uint64(at)
    word = np.uint64(data[u])
    word |= np.uint64(data[u + np.uint64(1)]) << np.uint64(8)
    word |= np.uint64(data[u + np.uint64(2)]) << np.uint64(16)
    word |= np.uint64(data[u + np.uint64(3)]) << np.uint64(24)
    word |= np.uint64(data[u + np.uint64(4)]) << np.uint64(32)
    word |= np.uint64(data[u + np.uint64(5)]) << np.uint64(40)
    word |= np.uint64(data[u + np.uint64(6)]) << np.uint64(48)
    word |= np.uint64(data[u + np.uint64(7)]) << np.uint64(56)
    return word


@inlined
def same_bytes(one: Bytes, at: int, other: Bytes, there: int, length: int) -> bool:
    j = 0
    while j + 8 <= length:
        if _eight_bytes(one, at + j) != _eight_bytes(other, there + j):
            return False
        j += 8
    while j < length:
        if one[at + j] != other[there + j]:
            return False
        j += 1
    return True


@kernel
def hash_bytes(data: Bytes, start: int, length: int) -> int:
    k1 = np.uint64(0x9E3779B97F4A7C15)
    k2 = np.uint64(0xC2B2AE3D27D4EB4F)
    h = (np.uint64(length) + np.uint64(1)) * k2
    at = start
    end = start + length
    while at + 8 <= end:
        word = _eight_bytes(data, at)
        h = (h ^ word) * k1
        h ^= h >> np.uint64(32)
        at += 8
    if at < end:
        word = np.uint64(0)
        shift = np.uint64(0)
        for j in range(at, end):
            word |= np.uint64(data[j]) << shift
            shift += np.uint64(8)
        h = (h ^ word) * k1
        h ^= h >> np.uint64(32)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= k2
    h ^= h >> np.uint64(29)
    if h == np.uint64(0):
        h = np.uint64(1)
    return int(np.int64(h))


@compiled(types.void(*STRINGS, LONGS))
def hash_column(data: Bytes, starts: Longs, lengths: Ints, out: Longs) -> None:
    """Write a 64-bit hash of each string to `out`; null gives 0, which no string hashes to."""
    for i in range(len(starts)):
        out[i] = 0 if lengths[i] < 0 else hash_bytes(data, starts[i], int(lengths[i]))


@compiled(int64(*STRINGS, *STRINGS, LONGS, LONGS))
def hash_batch(
    key_data: Bytes,
    key_starts: Longs,
    key_lengths: Ints,
    id_data: Bytes,
    id_starts: Longs,
    id_lengths: Ints,
    keys: Longs,
    ids: Longs,
) -> int:
    """Write the hashes of the keys and ids, 0 for null; return the bytes of all keys."""
    total = 0
    for i in range(len(key_starts)):
        keys[i] = 0
        if key_lengths[i] >= 0:
            keys[i] = hash_bytes(key_data, key_starts[i], int(key_lengths[i]))
            total += key_lengths[i]
        ids[i] = 0 if id_lengths[i] < 0 else hash_bytes(id_data, id_starts[i], int(id_lengths[i]))
    return total


@inlined
def find_slot(
    table: Longs,
    slots: Longs,
    key_bytes: Bytes,
    data: Bytes,
    start: int,
    length: int,
    h: int,
) -> int:
    mask = len(table) - 1
    tag = h >> 32
    at = h & mask
    while True:
        entry = table[at]
        if entry == 0:
            return 0
        if entry >> 32 == tag:
            s = entry & 0xFFFFFFFF
            if (
                slots[s, HASH] == h
                and slots[s, KEY_LENGTH] == length
                and same_bytes(key_bytes, slots[s, KEY_AT], data, start, length)
            ):
                return int(s)
        at = (at + 1) & mask


@kernel
def create_slot(
    table: Longs,
    slots: Longs,
    key_bytes: Bytes,
    meta: Longs,
    data: Bytes,
    start: int,
    length: int,
    h: int,
) -> int:
    s = meta[FREE_SLOT]
    if s != 0:
        meta[FREE_SLOT] = slots[s, BASE]
    else:
        s = meta[SLOTS]
        meta[SLOTS] = s + 1
        slots[s, KEY_ROOM] = 0
    if slots[s, KEY_ROOM] < length:
        slots[s, KEY_AT] = meta[KEY_TOP]
        slots[s, KEY_ROOM] = length
        meta[KEY_TOP] += length
    origin = slots[s, KEY_AT]
    for j in range(length):
        key_bytes[origin + j] = data[start + j]
    slots[s, KEY_LENGTH] = length
    slots[s, BASE] = 0
    slots[s, CAPACITY] = 0
    slots[s, HEAD] = 0
    slots[s, LAST] = 0
    slots[s, HASH] = h
    slots[s, WAITING] = 0
    slots[s, HINT] = 0
    for e in range(EDGE_HINTS):
        slots[s, EDGE_HINT + e] = 0
    slots[s, NEWEST] = NEVER
    mask = len(table) - 1
    at = h & mask
    while table[at] != 0:
        at = (at + 1) & mask
    table[at] = ((h >> 32) << 32) | s
    meta[KEYS] += 1
    return int(s)


@kernel
def drop_slot(table: Longs, slots: Longs, meta: Longs, s: int) -> None:
    mask = len(table) - 1
    at = slots[s, HASH] & mask
    while table[at] == 0 or (table[at] & 0xFFFFFFFF) != s:
        at = (at + 1) & mask
    # Close the gap so that no chain of probes is cut and no tombstones pile up.
    gap = at
    while True:
        at = (at + 1) & mask
        if table[at] == 0:
            break
        home = slots[table[at] & 0xFFFFFFFF, HASH] & mask
        if ((at - home) & mask) >= ((at - gap) & mask):
            table[gap] = table[at]
            gap = at
    table[gap] = 0
    slots[s, HASH] = 0
    slots[s, KEY_LENGTH] = -1
    slots[s, BASE] = meta[FREE_SLOT]
    meta[FREE_SLOT] = s
    meta[KEYS] -= 1
