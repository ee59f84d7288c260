"""Recognise repeated ids in bounded memory: at-least-once input counted once."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from schemas.columns import StringColumn
from schemas.errors import ConfigurationError

__all__ = ["SeenIds", "hash_ids", "warm"]


class SeenIds:
    """A set of the newest ids, as 128-bit hashes in two generations.

    At least the newest `retained` and at most twice as many ids are remembered (64 bytes each). An
    id seen longer ago counts as new. Two ids out of a billion collide with probability below 1e-20.
    """

    def __init__(self, retained: int = 1_000_000) -> None:
        if retained < 1:
            msg = f"remembering ids: expected to retain one or more, was {retained!r}"
            raise ConfigurationError(msg)
        self._retained = retained
        slots = 1 << max(4, (2 * retained - 1).bit_length())
        # [generation, slot, half of the hash]; (0, 0) marks an empty slot.
        self._table = np.zeros((2, slots, 2), np.uint64)
        self._cursor = np.zeros(2, np.int64)  # current generation, ids in it

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Add ids of shape (n, 2) in order and return which of them were new."""
        fresh = np.empty(len(hashes), np.bool_)
        _add(self._table, self._cursor, self._retained, np.array(hashes), fresh)
        return fresh

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return arrays that `from_state` continues from."""
        generation = int(self._cursor[0])
        held = [table[table.any(axis=1)] for table in self._table]
        return {
            "retained": np.array([self._retained]),
            "current": held[generation],
            "previous": held[1 - generation],
        }

    @staticmethod
    def from_state(state: dict[str, NDArray[np.generic]]) -> SeenIds:
        """Return the set that `state` described."""
        seen = SeenIds(int(state["retained"][0]))
        ignored = np.empty(max(len(state["current"]), len(state["previous"])), np.bool_)
        for generation, name in ((1, "previous"), (0, "current")):
            seen._cursor[:] = (generation, 0)
            ids = np.array(state[name], np.uint64).reshape(-1, 2)
            limit = np.iinfo(np.int64).max
            _add(seen._table, seen._cursor, limit, ids, ignored)
        return seen


def hash_ids(ids: StringColumn) -> NDArray[np.uint64]:
    """Return 128-bit hashes of shape (n, 2), never (0, 0); null counts as an empty string."""
    hashes = np.empty((len(ids), 2), np.uint64)
    _hash(
        np.array(ids.data, np.uint8),
        np.array(ids.starts, np.int64),
        np.array(ids.lengths, np.int32),
        hashes,
    )
    return hashes


def warm() -> None:
    """Compile the kernels of this module, so that no event waits for the compiler."""
    SeenIds(4).add(hash_ids(StringColumn.from_texts(["a", "a"])))


@nb.njit("void(u1[::1], i8[::1], i4[::1], u8[:,::1])", cache=True, nogil=True)
def _hash(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    hashes: NDArray[np.uint64],
) -> None:
    # FNV-1a with two offsets, each finished by MurmurHash3's mixer: FNV alone leaves the high bits
    # of short ids poorly mixed.
    for index in range(len(starts)):
        for half in range(2):
            value = np.uint64(14695981039346656037 if half == 0 else 11400714819323198485)
            for place in range(starts[index], starts[index] + max(lengths[index], 0)):
                value = (value ^ np.uint64(data[place])) * np.uint64(1099511628211)
            value ^= value >> np.uint64(33)
            value *= np.uint64(0xFF51AFD7ED558CCD)
            value ^= value >> np.uint64(33)
            value *= np.uint64(0xC4CEB9FE1A85EC53)
            value ^= value >> np.uint64(33)
            hashes[index, half] = value
        if hashes[index, 0] == 0 and hashes[index, 1] == 0:
            hashes[index, 0] = np.uint64(1)


@nb.njit("b1(u8[:,::1], u8, u8, b1)", cache=True, nogil=True)
def _find(
    table: NDArray[np.uint64],
    first: np.uint64,
    second: np.uint64,
    insert: bool,
) -> bool:
    mask = np.uint64(len(table) - 1)
    slot = first & mask
    while True:
        if table[slot, 0] == first and table[slot, 1] == second:
            return True
        if table[slot, 0] == 0 and table[slot, 1] == 0:
            if insert:
                table[slot, 0] = first
                table[slot, 1] = second
            return False
        slot = (slot + np.uint64(1)) & mask


@nb.njit("void(u8[:,:,::1], i8[::1], i8, u8[:,::1], b1[::1])", cache=True, nogil=True)
def _add(
    table: NDArray[np.uint64],
    cursor: NDArray[np.int64],
    retained: int,
    hashes: NDArray[np.uint64],
    fresh: NDArray[np.bool_],
) -> None:
    for index in range(len(hashes)):
        first, second = hashes[index, 0], hashes[index, 1]
        if _find(table[1 - cursor[0]], first, second, False):
            fresh[index] = False
            continue
        if cursor[1] >= retained and not _find(table[cursor[0]], first, second, False):
            cursor[0] = 1 - cursor[0]
            cursor[1] = 0
            table[cursor[0]] = np.uint64(0)
        fresh[index] = not _find(table[cursor[0]], first, second, True)
        cursor[1] += fresh[index]
