"""A bounded, set-associative cache from key bytes to fixed-size values, for whole batches."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from schemas.columns import StringColumn

__all__ = ["MAX_KEY_BYTES", "ProfileCache", "unique_rows"]

MAX_KEY_BYTES: Final = 48
"""Longer keys are right but never cached; entity ids are mostly UUIDs or shorter (36 bytes)."""

# Four places for a key: with one, 5 % of a half-full cache would fight over places.
_WAYS: Final = 4


class ProfileCache:
    """Holds values by exact key for a limited time; the oldest of four places makes room.

    Memory is fixed: about (72 + value size) bytes an entry.

    Args:
        entries: how many values fit, rounded up to a power of two.
        value: the type of a value.
        ttl_ms: how long a value may be used.
    """

    def __init__(self, entries: int, value: np.dtype[np.void], ttl_ms: int) -> None:
        size = 1 << max(int(entries) - 1, _WAYS).bit_length()
        self._ttl_ms = ttl_ms
        self._hashes = np.zeros(size, np.uint64)
        self._expires = np.full(size, -1, np.int64)
        self._key_lengths = np.full(size, -1, np.int32)
        self._keys = np.zeros((size, MAX_KEY_BYTES), np.uint8)
        self._found = np.zeros(size, np.bool_)
        self._values = np.zeros(size, value)

    def probe(
        self, keys: StringColumn, hashes: NDArray[np.uint64], now_ms: int
    ) -> tuple[NDArray[np.int64], int]:
        """Return the place of each key, -1 where it is absent or too old, and how many have one."""
        return _probe(
            self._hashes, self._expires, self._key_lengths, self._keys,
            keys.data, keys.starts, keys.lengths, hashes, now_ms,
        )  # fmt: skip

    def values(self, places: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Return the values at places that `probe` gave, and which of them exist."""
        return self._values[places], self._found[places]

    def put(
        self,
        keys: StringColumn,
        hashes: NDArray[np.uint64],
        values: NDArray[np.void],
        found: NDArray[np.bool_],
        now_ms: int,
    ) -> None:
        """Remember values, also that a key has none; null and overlong keys are passed over."""
        places = _claim(
            self._hashes, self._expires, self._key_lengths, self._keys,
            keys.data, keys.starts, keys.lengths, hashes, now_ms, now_ms + self._ttl_ms,
        )  # fmt: skip
        kept = places >= 0
        self._values[places[kept]] = values[kept]
        self._found[places[kept]] = found[kept]


def unique_rows(
    keys: StringColumn, hashes: NDArray[np.uint64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first of `rows` for each distinct key, and for each row the index of its key."""
    return _unique(keys.data, keys.starts, keys.lengths, hashes, rows)


@njit(cache=True, nogil=True)
def _probe(
    slot_hashes: NDArray[np.uint64],
    expires: NDArray[np.int64],
    key_lengths: NDArray[np.int32],
    slot_keys: NDArray[np.uint8],
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    now_ms: int,
) -> tuple[NDArray[np.int64], int]:
    n = len(starts)
    sets = len(slot_hashes) // 4
    places = np.full(n, -1, np.int64)
    hits = 0
    for row in range(n):
        length = lengths[row]
        if length < 0 or length > slot_keys.shape[1]:
            continue
        first = np.int64(hashes[row] % np.uint64(sets)) * 4
        for slot in range(first, first + 4):
            if (
                slot_hashes[slot] != hashes[row]
                or key_lengths[slot] != length
                or expires[slot] <= now_ms
            ):
                continue
            same = True
            start = starts[row]
            for byte in range(length):
                if slot_keys[slot, byte] != data[start + byte]:
                    same = False
                    break
            if same:
                places[row] = slot
                hits += 1
                break
    return places, hits


@njit(cache=True, nogil=True)
def _claim(
    slot_hashes: NDArray[np.uint64],
    expires: NDArray[np.int64],
    key_lengths: NDArray[np.int32],
    slot_keys: NDArray[np.uint8],
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    now_ms: int,
    expires_ms: int,
) -> NDArray[np.int64]:
    n = len(starts)
    sets = len(slot_hashes) // 4
    places = np.full(n, -1, np.int64)
    for row in range(n):
        length = lengths[row]
        if length < 0 or length > slot_keys.shape[1]:
            continue
        start = starts[row]
        first = int(hashes[row] % np.uint64(sets)) * 4
        chosen: int = first
        for slot in range(first, first + 4):
            if slot_hashes[slot] == hashes[row] and key_lengths[slot] == length:
                same = True
                for byte in range(length):
                    if slot_keys[slot, byte] != data[start + byte]:
                        same = False
                        break
                if same:
                    chosen = slot
                    break
            if expires[slot] < expires[chosen]:
                chosen = slot
        # Two keys of one call may claim the same place; the later one owns it, and the values are
        # written in the same order.
        for byte in range(length):
            slot_keys[chosen, byte] = data[start + byte]
        key_lengths[chosen] = length
        slot_hashes[chosen] = hashes[row]
        expires[chosen] = expires_ms
        places[row] = chosen
    return places


@njit(cache=True, nogil=True)
def _unique(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    n = len(rows)
    size = 4
    while size < 2 * n:
        size *= 2
    table = np.full(size, -1, np.int64)
    firsts = np.empty(n, np.int64)
    inverse = np.empty(n, np.int64)
    count = 0
    for index in range(n):
        row = rows[index]
        slot = np.int64(hashes[row] & np.uint64(size - 1))
        while True:
            known = table[slot]
            if known < 0:
                table[slot] = count
                firsts[count] = row
                inverse[index] = count
                count += 1
                break
            other = firsts[known]
            same = hashes[other] == hashes[row] and lengths[other] == lengths[row]
            if same:
                for byte in range(lengths[row]):
                    if data[starts[other] + byte] != data[starts[row] + byte]:
                        same = False
                        break
            if same:
                inverse[index] = known
                break
            slot = (slot + 1) & (size - 1)
    return firsts[:count].copy(), inverse
