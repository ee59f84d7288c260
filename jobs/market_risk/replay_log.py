"""Durable state of a shard: a snapshot now and then, and the batches since.

A stage of this job is a deterministic function of its batches, so what came in is the smallest
delta: one put for each batch, and a snapshot when the batches since the last one outweigh it. After
a restart the snapshot is restored and the batches are processed again with their outputs thrown
away.

Keys: 0 holds the header, numbers from 1 the pieces of the snapshot, from `_FIRST_BATCH` the
    batches.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

import zstandard

from jobs.stage import StateMap
from schemas.errors import FatalError

__all__ = ["ReplayLog", "StateVersionError"]

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<IIqq")  # version, pieces, first batch, next batch
_FIRST_BATCH: Final = 1 << 20
_PIECE_BYTES: Final = 2 * 1024 * 1024
# Less would snapshot a small state every few batches; more would make a restart replay longer: 4 MB
# of ticks are some 60,000 records, processed again in well under a second.
_LEAST_LOG_BYTES: Final = 4 * 1024 * 1024


class StateVersionError(FatalError):
    """The state of a shard was written by a release that this one cannot read."""


class ReplayLog:
    """The log of one shard, over the state that Flink keeps."""

    def __init__(self, state: StateMap) -> None:
        self._state = state
        self._compressor = zstandard.ZstdCompressor(level=1)
        header = state.get(0)
        self._pieces, self._first, self._next = 0, _FIRST_BATCH, _FIRST_BATCH
        self._snapshot_bytes = 0
        self._log_bytes = 0
        if header is not None:
            version, self._pieces, self._first, self._next = _HEADER.unpack(header)
            if version != _VERSION:
                msg = f"reading a shard's state: expected version {_VERSION}, was {version}"
                raise StateVersionError(msg)

    def snapshot(self) -> bytes | None:
        """Return the last snapshot, or None before the first."""
        if not self._pieces:
            return None
        pieces = [self._state.get(number) or b"" for number in range(1, self._pieces + 1)]
        packed = b"".join(pieces)
        self._snapshot_bytes = len(packed)
        return zstandard.decompress(packed)

    def batches(self) -> Iterator[bytes]:
        """Yield the batches since the snapshot, in order."""
        for number in range(self._first, self._next):
            packed = self._state.get(number)
            if packed is not None:
                self._log_bytes += len(packed)
                yield zstandard.decompress(packed)

    def append(self, batch: bytes, snapshot: Callable[[], bytes]) -> None:
        """Record a batch that was processed; call `snapshot` when it is time for one."""
        packed = self._compressor.compress(batch)
        if self._log_bytes + len(packed) > max(_LEAST_LOG_BYTES, self._snapshot_bytes):
            self._fold(snapshot())
        else:
            self._state.put(self._next, packed)
            self._next += 1
            self._log_bytes += len(packed)
        self._put_header()

    def _fold(self, snapshot: bytes) -> None:
        packed = self._compressor.compress(snapshot)
        pieces = [
            packed[at : at + _PIECE_BYTES] for at in range(0, max(len(packed), 1), _PIECE_BYTES)
        ]
        for number, piece in enumerate(pieces, start=1):
            self._state.put(number, piece)
        for number in range(len(pieces) + 1, self._pieces + 1):
            self._state.remove(number)
        for number in range(self._first, self._next):
            self._state.remove(number)
        self._pieces, self._first = len(pieces), self._next
        self._snapshot_bytes, self._log_bytes = len(packed), 0

    def _put_header(self) -> None:
        self._state.put(0, _HEADER.pack(_VERSION, self._pieces, self._first, self._next))
