"""The durable log of a shard: small deltas, folded into bounded, compressed segments.

A batch costs one put. After every `FANOUT` batches the newest entries are folded into one
compressed chunk, and chunks into larger ones until they reach a segment; a segment is left alone
and goes when the shard's clock is two horizons past it. So each row is rewritten a few times at
most, no value grows without limit, and an incremental checkpoint uploads little.

Entries are numbered; an entry's number is that of the newest delta in it and its header names the
oldest. A fold writes the chunk under its newest number and then removes the others. A crash between
those two leaves entries that the chunk covers: `chunks` passes over them and removes them. The log
is therefore consistent after every single put or remove.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from jobs.windows.delta import chunk_header, join_encoded

__all__ = ["FANOUT", "SEGMENT_BYTES", "LogStore", "MemoryLog", "StateLog"]

FANOUT: Final = 32
"""Deltas folded at once. Fewer: more rewriting; more: longer pauses and more entries to read."""
SEGMENT_BYTES: Final = 512 * 1024
"""A chunk of half this size is left alone. A fold gathers at most twice this before compression: no
value passes 1 MiB, which every state backend writes in one piece, and a batch waits some 5 ms for
the fold that completes a segment (docs/decisions/0006)."""
# Where a header holds its clock and the number of its first delta.
_CLOCK: Final = struct.Struct("<q")
_CLOCK_AT: Final = 16
_FIRST_SEQUENCE_AT: Final = 24
_FIRST_SEQUENCE_END: Final = 32


class LogStore(Protocol):
    """Where the entries are: Flink's map state, or a dictionary in tests."""

    def get(self, key: int) -> bytes:
        """Return the value of a key that was put."""

    def put(self, key: int, value: bytes) -> None:
        """Write or replace a value."""

    def remove(self, key: int) -> None:
        """Remove a key that was put."""

    def items(self) -> Iterable[tuple[int, bytes]]:
        """Return all entries in any order."""


class MemoryLog:
    """A `LogStore` in memory: for tests, benchmarks and offline runs."""

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}

    def get(self, key: int) -> bytes:
        """Return the value of a key."""
        return self.entries[key]

    def put(self, key: int, value: bytes) -> None:
        """Write or replace a value."""
        self.entries[key] = value

    def remove(self, key: int) -> None:
        """Remove a key."""
        del self.entries[key]

    def items(self) -> Iterable[tuple[int, bytes]]:
        """Return all entries."""
        return list(self.entries.items())


@dataclass(slots=True)
class _Entry:
    number: int
    folded: bool
    size: int
    clock_ms: int
    data: bytes | None
    """What is stored, while it waits for the next fold: reading it back costs a state call."""


class StateLog:
    """The log of one shard and entity over a `LogStore`.

    Call `chunks` once after a start, hand them to `ShardStore.restore`, then `append` each delta.
    """

    def __init__(self, store: LogStore, horizon_ms: int) -> None:
        self._store = store
        self._horizon_ms = horizon_ms
        self._entries: list[_Entry] = []
        self._next = 0
        self._open_count = 0
        self._open_bytes = 0

    def chunks(self) -> Iterator[bytes]:
        """Yield every chunk, oldest first, and take note of what the store holds.

        Entries left over from an interrupted fold are removed, never yielded.

        Raises:
            StateFormatError: when an entry is not a chunk or is newer than this code.
        """
        found = sorted(self._store.items())
        kept: list[tuple[int, bytes]] = []
        for number, data in reversed(found):
            if kept and number >= chunk_header(kept[-1][1]).first_sequence:
                self._store.remove(number)
            else:
                kept.append((number, data))
        kept.reverse()
        self._entries = []
        for number, data in kept:
            header = chunk_header(data)
            waits = None if header.compressed else data
            self._entries.append(
                _Entry(number, header.compressed, len(data), header.clock_ms, waits)
            )
        self._next = kept[-1][0] + 1 if kept else 0
        self._open_count = sum(not entry.folded for entry in self._entries)
        self._open_bytes = sum(entry.size for entry in self._entries if not entry.folded)
        for _, data in kept:
            yield data

    def append(self, delta: bytes, clock_ms: int | None) -> None:
        """Make one batch's delta durable; an empty delta changes nothing.

        One put; every `FANOUT` appends, or `SEGMENT_BYTES`, also a fold and the removal of what has
        expired by the clock of the store after that batch (`ShardStore.clock_ms`). The delta's own
        clock will not do: a label that waits may claim any time, and must not expire events.
        """
        if not delta:
            return
        number = self._next
        first = number.to_bytes(8, "little")
        stamped = delta[:_FIRST_SEQUENCE_AT] + first + delta[_FIRST_SEQUENCE_END:]
        self._store.put(number, stamped)
        self._next = number + 1
        (clock,) = _CLOCK.unpack_from(delta, _CLOCK_AT)
        self._entries.append(_Entry(number, False, len(delta), clock, stamped))
        self._open_count += 1
        self._open_bytes += len(delta)
        if self._open_count >= FANOUT or self._open_bytes >= SEGMENT_BYTES:
            if clock_ms is not None:
                self._expire(clock_ms)
            self._fold()

    def __len__(self) -> int:
        return len(self._entries)

    def stored_bytes(self) -> int:
        """Return the bytes of all entries."""
        return sum(entry.size for entry in self._entries)

    def _expire(self, clock_ms: int) -> None:
        gone = clock_ms - 2 * self._horizon_ms
        while self._entries and self._entries[0].clock_ms <= gone:
            self._store.remove(self._entries.pop(0).number)

    def _fold(self) -> None:
        """Join the newest entries into one chunk, and older ones as long as that pays.

        An older chunk joins when it is no larger than what was gathered so far: sizes grow
        geometrically towards the head of the log, so a row is rewritten a logarithmic number of
        times.
        """
        start, size = len(self._entries), 0
        while start > 0:
            entry = self._entries[start - 1]
            if entry.folded and (entry.size > size or 2 * entry.size >= SEGMENT_BYTES):
                break
            if size > 0 and size + entry.size > 2 * SEGMENT_BYTES:
                break
            size += entry.size
            start -= 1
        self._open_count = self._open_bytes = 0
        group = self._entries[start:]
        if group:
            self._entries[start:] = self._join(group)

    def _join(self, group: list[_Entry]) -> list[_Entry]:
        stored = [self._store.get(e.number) if e.data is None else e.data for e in group]
        data = join_encoded(stored)
        for entry in group:
            entry.folded, entry.data = True, None
        if data is None:
            # Only where the feature set changed: chunks of different fields are left as they are.
            return group
        number, clock = group[-1].number, max(entry.clock_ms for entry in group)
        self._store.put(number, data)
        for entry in group[:-1]:
            self._store.remove(entry.number)
        return [_Entry(number, True, len(data), clock, None)]
