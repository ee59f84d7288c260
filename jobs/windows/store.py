"""One shard's windows over one entity: a batch of events in, exact features out.

Semantics, for an event of time t of a key (see docs/windows.md for the reasons):

* A window covers `(t - w, t]`, or `(t - d - w, t - d]` with a delay, and includes the event itself.
* Among events of equal time the order is that of arrival: an event sees those that came before it.
* A key's clock is its newest event time (and never more than one horizon behind the shard's). The
  *horizon* is the longest window and delay plus the allowed lateness. Events at or before clock
  minus horizon are out of sight for ever; pruning them from memory cannot be noticed.
* A late event is inserted at its event time, counted from then on, and scored as of its own time.
  An event that is out of sight on arrival is scored alone and flagged, not counted.
* An event id counts once per key while its event is in sight; the repeat is scored like the first.
* A label changes its event in place; revisions only go up. A label without its event waits for it.
* Nulls: counts count events, everything else leaves null values out.

Results depend on the order of each key's rows only: not on batches, shards or restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.windows import _kernels as kernels
from jobs.windows import _layout as layout
from jobs.windows._delta_kernels import gather_changed
from jobs.windows._key_kernels import hash_batch
from jobs.windows._memory import reserve_words
from jobs.windows._restore import ahead, touched_ahead
from jobs.windows._restore_kernels import (
    RECORD_WIDTH,
    add_keys,
    count_rows,
    find_known,
    place_records,
    sort_rows,
    words_needed,
)
from jobs.windows.batch import EventBatch, Kind, Processed
from jobs.windows.delta import Chunk, chunk_header, decode_keys, decode_rows, field_table, seal
from jobs.windows.plan import EntityPlan, compile_entity
from jobs.windows.raw import RawField, hash_strings, label_codes, raw_matrix
from jobs.windows.spec import FeatureSet
from schemas.columns import StringColumn

__all__ = ["ShardStore", "StoreStats", "warm"]

_Number = TypeVar("_Number", bound=np.generic)
"""What a growing array holds."""
# Rows of a chunk restored in one call: bounds the scratch memory, amortises the call.
RESTORE_ROWS: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds: keys, events in memory, waiting labels, bytes, and its clock."""

    keys: int
    events: int
    waiting_labels: int
    memory_bytes: int
    clock_ms: int | None


class ShardStore:
    """The windows of one entity for the keys of one shard."""

    def __init__(self, feature_set: FeatureSet, entity: str) -> None:
        self.feature_set = feature_set
        self.plan: EntityPlan = compile_entity(feature_set, entity)
        self._table_bytes = field_table(self.plan.raw_fields)
        self._arena = reserve_words()
        self._floats = self._arena.view(np.float64)
        self._meta = np.zeros(layout.META_WIDTH, np.int64)
        self._meta[layout.CLOCK] = layout.NEVER
        self._meta[layout.SLOTS] = 1
        self._meta[layout.WAITS] = 1
        self._table = np.zeros(1024, np.int64)
        self._slots = _slot_table(512)
        self._key_bytes = np.zeros(16 * 1024, np.uint8)
        self._waits = np.zeros((64, 4), np.int64)
        room = max(layout.AHEAD, len(self.plan.edges), len(self.plan.bounds))
        self._scratch = np.zeros((5, room), np.int64)
        self._slots[0, layout.CAPACITY] = layout.FIRST_CAPACITY
        self._slots[0, layout.KEY_LENGTH] = -1
        self._meta[layout.ARENA_TOP] = layout.FIRST_CAPACITY * self.plan.columns

    @property
    def horizon_ms(self) -> int:
        """The longest window and delay plus the allowed lateness."""
        return self.plan.horizon_ms

    @property
    def clock_ms(self) -> int | None:
        """The newest event time counted so far, or None."""
        clock = int(self._meta[layout.CLOCK])
        return None if clock == layout.NEVER else clock

    def process(self, batch: EventBatch) -> Processed:
        """Count the rows in order, score the events and return what must be made durable.

        Rows that are not events have NaN features. Nothing is raised for any data: what cannot be
        used is null, and said in the flags.
        """
        batch = _contiguous(batch)
        n = len(batch)
        raw, valid = raw_matrix(self.plan.raw_fields, batch.fields, n)
        labelled = int(np.count_nonzero(batch.kind)) if self.plan.uses_labels else 0
        labels = np.zeros(n, np.int64)
        if labelled:
            labels = label_codes(batch.fields, n)
            labels[batch.kind != Kind.LABEL] = 0
        key, event_id, times = batch.key, batch.event_id, batch.event_time_ms.copy()
        hashes, ids = np.empty(n, np.int64), np.empty(n, np.int64)
        key_bytes = hash_batch(
            key.data,
            key.starts,
            key.lengths,
            event_id.data,
            event_id.starts,
            event_id.lengths,
            hashes,
            ids,
        )
        self._grow(n, labelled, key_bytes)
        out = np.empty((n, len(self.plan.features)))
        flags, changed = np.empty(n, np.uint8), np.empty(n, np.uint8)
        self._run(
            batch.kind,
            times,
            key,
            hashes,
            ids,
            raw,
            valid,
            labels,
            out,
            flags,
            changed,
        )
        delta = self._delta(batch, times, ids, raw, valid, labels, changed)
        return Processed(out, flags, delta)

    def restore(self, chunks: Iterable[bytes]) -> int:
        """Rebuild the store from its log, oldest first; return the number of rows read.

        Chunks written under another feature set are welcome: fields that they lack are null.

        Raises:
            StateFormatError: when a chunk is damaged or newer than this code.
        """
        stored = list(chunks)
        clocks = [chunk_header(data).clock_ms for data in stored]
        since = max(clocks, default=0) - self.horizon_ms
        # Twice through the log, keys first: a key's room is made once when it is known how many
        # rows come. They are counted apart by whether their chunk has any of the last horizon.
        found: list[NDArray[np.int32]] = []
        rooms = np.zeros((2, 0), np.int64)
        for clock, seen in zip(clocks, ahead(self._look_up, stored), strict=True):
            self._add_keys(seen)
            found.append(seen.found)
            if rooms.shape[1] < len(self._slots):
                grown = np.zeros((2, len(self._slots)), np.int64)
                grown[:, : rooms.shape[1]] = rooms
                rooms = grown
            count_rows(seen.found, rooms[0 if clock > since else 1])
        rooms = np.ascontiguousarray(rooms[:, : int(self._meta[layout.SLOTS])])
        words = words_needed(self._slots, rooms, self.plan.header)
        # A group costs a pass over all keys.
        least, records = max(RESTORE_ROWS, rooms.shape[1]), np.empty(0, np.int64)
        with touched_ahead(self._arena, int(self._meta[layout.ARENA_TOP]), words):
            again = ahead(decode_rows, stored)
            first = 0
            while first < len(found):
                end, rows = first, 0
                while end < len(found) and rows < least:
                    rows += len(found[end])
                    end += 1
                records = self._replay(again, found[first:end], rooms, records)
                first = end
        return sum(map(len, found))

    def prune(self) -> int:
        """Drop every key whose events are all out of sight; return how many went."""
        dropped: int = kernels.prune_slots(int(self._meta[layout.SLOTS]), *self._prunable())
        return dropped

    def memory_bytes(self) -> int:
        """Return the bytes in use: logs, their spare room, keys and index."""
        fixed = (self._table, self._slots, self._key_bytes, self._waits)
        arena = int(self._meta[layout.ARENA_TOP]) * 8
        return arena + sum(array.nbytes for array in fixed)

    def stats(self) -> StoreStats:
        """Return what the store holds now."""
        waiting, at = int(self._meta[layout.WAITS]) - 1, int(self._meta[layout.FREE_WAIT])
        while at:
            waiting -= 1
            at = int(self._waits[at, 3])
        return StoreStats(
            keys=int(self._meta[layout.KEYS]),
            events=int(self._meta[layout.ROWS]),
            waiting_labels=waiting,
            memory_bytes=self.memory_bytes(),
            clock_ms=self.clock_ms,
        )

    def _prunable(self) -> tuple[NDArray[np.int64], ...]:
        return (
            self._table,
            self._slots,
            self._waits,
            self._meta,
            self._arena,
            self.plan.header,
        )

    def _run(
        self,
        kind: NDArray[np.uint8],
        times: NDArray[np.int64],
        key: StringColumn,
        hashes: NDArray[np.int64],
        ids: NDArray[np.int64],
        raw: NDArray[np.int64],
        valid: NDArray[np.uint32],
        labels: NDArray[np.int64],
        out: NDArray[np.float64],
        flags: NDArray[np.uint8],
        changed: NDArray[np.uint8],
    ) -> None:
        plan, reached, n = self.plan, 0, len(kind)
        while reached < n:
            reached = kernels.process_rows(
                reached,
                kind,
                times,
                key.data,
                key.starts,
                key.lengths,
                hashes,
                ids,
                raw,
                valid,
                labels,
                self._table,
                self._slots,
                self._key_bytes,
                self._waits,
                self._meta,
                self._arena,
                self._floats,
                plan.header,
                plan.raws,
                plan.measures,
                plan.filters,
                plan.filter_operands,
                plan.edges,
                plan.bounds,
                plan.features,
                plan.feature_numbers,
                self._scratch,
                out,
                flags,
                changed,
            )
            if reached < n:
                self._grow_arena(int(self._meta[layout.NEED]))

    def _grow(self, new_keys: int, new_waits: int, key_bytes: int) -> None:
        meta = self._meta
        slots = int(meta[layout.SLOTS]) + new_keys
        if slots > len(self._slots):
            grown = _slot_table(max(slots, 2 * len(self._slots)))
            grown[: len(self._slots)] = self._slots
            self._slots = grown
        keys = int(meta[layout.KEYS]) + new_keys
        if 2 * keys > len(self._table):
            size = 1 << (3 * keys).bit_length()
            self._table = np.zeros(size, np.int64)
            kernels.rebuild_table(self._table, self._slots, meta)
        top = int(meta[layout.KEY_TOP]) + key_bytes
        if top > len(self._key_bytes):
            self._key_bytes = _enlarged(self._key_bytes, top)
        waits = int(meta[layout.WAITS]) + new_waits
        if waits > len(self._waits):
            self._waits = _enlarged(self._waits, waits)

    def _grow_arena(self, words: int) -> None:
        # Only reached where the system would not reserve enough addresses in one piece.
        needed = int(self._meta[layout.ARENA_TOP]) + words
        self._arena = _enlarged(self._arena, needed)
        self._floats = self._arena.view(np.float64)

    def _delta(
        self,
        batch: EventBatch,
        times: NDArray[np.int64],
        ids: NDArray[np.int64],
        raw: NDArray[np.int64],
        valid: NDArray[np.uint32],
        labels: NDArray[np.int64],
        changed: NDArray[np.uint8],
    ) -> bytes:
        meta = self._meta
        rows = int(meta[layout.CHANGED])
        if not rows:
            return b""
        key = batch.key
        kinds, valid_out = np.empty(rows, np.uint8), np.empty(rows, np.uint32)
        lengths, longs = np.empty(rows, np.uint16), np.empty((3 + len(raw), rows), np.int64)
        keys = np.empty(int(meta[layout.CHANGED_BYTES]), np.uint8)
        gather_changed(
            changed,
            batch.kind,
            valid,
            key.data,
            key.starts,
            key.lengths,
            times,
            ids,
            labels,
            raw,
            kinds,
            valid_out,
            lengths,
            longs,
            keys,
        )
        clock = max(int(meta[layout.CLOCK]), int(meta[layout.LABEL_CLOCK]))
        # Arrays are buffers, which their types do not say before Python 3.12.
        texts = b"".join((lengths, keys))  # type: ignore[arg-type]
        body = b"".join((kinds, valid_out, longs))  # type: ignore[arg-type]
        return seal(self._table_bytes, rows, clock, 0, texts, body)

    def _replay(
        self,
        chunks: Iterator[Chunk],
        found: list[NDArray[np.int32]],
        rooms: NDArray[np.int64],
        spare: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Sort the rows of the next chunks by key and count them, key by key in their order.

        `found` holds the slots of their rows, `spare` is memory that the group before is done with;
        return this group's.
        """
        plan, meta = self.plan, self._meta
        counts = np.zeros(rooms.shape[1], np.int64)
        for slots in found:
            count_rows(slots, counts)
        places = np.cumsum(counts) - counts
        rows, width = int(counts.sum()), RECORD_WIDTH + 2 * plan.uses_labels + len(plan.raw_fields)
        if len(spare) < rows * width:
            spare = np.empty(rows * width, np.int64)
        records = spare[: rows * width].reshape(rows, width)
        labelled = 0
        for slots, chunk in zip(found, chunks, strict=False):
            raw, valid = _fields_of(chunk, plan.raw_fields)
            sort_rows(
                slots,
                chunk.kind,
                valid,
                chunk.time_ms,
                chunk.id_hash,
                chunk.label,
                raw,
                places,
                self._scratch,
                meta,
                records,
            )
            labelled += int(np.count_nonzero(chunk.kind))
        self._grow(0, labelled, 0)
        reached = 0
        while reached < len(records):
            reached = place_records(
                reached,
                records,
                rooms,
                self._table,
                self._slots,
                self._key_bytes,
                self._waits,
                meta,
                self._arena,
                self._floats,
                plan.header,
                plan.raws,
                plan.measures,
                plan.filters,
                plan.filter_operands,
            )
            if reached < len(records):
                self._grow_arena(int(meta[layout.NEED]))
        return spare

    def _look_up(self, data: bytes) -> _Seen:
        """Find the keys of a chunk that are known; other threads may add some meanwhile."""
        keys = decode_keys(data)
        lengths = keys.lengths.astype(np.int32)
        key = StringColumn(keys.data, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
        hashes = hash_strings(key)
        found = np.empty(len(keys), np.int32)
        tables = (self._table, self._slots, self._key_bytes)
        find_known(key.data, key.starts, lengths, hashes, found, *tables)
        return _Seen(key, hashes, found)

    def _add_keys(self, seen: _Seen) -> None:
        key, reached = seen.key, 0
        while reached < len(seen.found):
            most = int(key.lengths[reached : reached + layout.AHEAD].sum())
            self._grow(layout.AHEAD, 0, most)
            reached = add_keys(
                reached,
                key.data,
                key.starts,
                key.lengths,
                seen.hashes,
                seen.found,
                self._table,
                self._slots,
                self._key_bytes,
                self._meta,
            )


@dataclass(frozen=True, slots=True)
class _Seen:
    """The keys of a chunk's rows: `found` is the slot of each, 0 for a new one."""

    key: StringColumn
    hashes: NDArray[np.int64]
    found: NDArray[np.int32]


def _contiguous(batch: EventBatch) -> EventBatch:
    # The kernels are compiled for contiguous arrays only; a batch may come as a view of another.
    texts = [batch.key, batch.event_id]
    texts += [column for column in batch.fields.values() if isinstance(column, StringColumn)]
    whole = batch.kind.flags.c_contiguous and batch.event_time_ms.flags.c_contiguous
    for text in texts:
        whole = whole and text.data.flags.c_contiguous
        whole = whole and text.starts.flags.c_contiguous and text.lengths.flags.c_contiguous
    if whole:
        return batch
    return EventBatch(
        np.ascontiguousarray(batch.kind),
        _contiguous_text(batch.key),
        np.ascontiguousarray(batch.event_time_ms),
        _contiguous_text(batch.event_id),
        {
            name: _contiguous_text(column) if isinstance(column, StringColumn) else column
            for name, column in batch.fields.items()
        },
    )


def _contiguous_text(column: StringColumn) -> StringColumn:
    return StringColumn(
        np.ascontiguousarray(column.data),
        np.ascontiguousarray(column.starts),
        np.ascontiguousarray(column.lengths),
    )


def _slot_table(slots: int) -> NDArray[np.int64]:
    # A slot is two cache lines, and three where the table does not begin at one.
    words = np.zeros(slots * layout.SLOT_WIDTH + 8, np.int64)
    first = -words.ctypes.data % 64 // 8
    return words[first : first + slots * layout.SLOT_WIDTH].reshape(slots, layout.SLOT_WIDTH)


def _enlarged(array: NDArray[_Number], length: int) -> NDArray[_Number]:
    grown = np.zeros((max(length, 2 * len(array)), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


def _fields_of(
    chunk: Chunk, wanted: tuple[RawField, ...]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    if chunk.fields == wanted:
        return chunk.raw, chunk.valid
    raw = np.zeros((len(wanted), len(chunk)), np.int64)
    valid = np.zeros(len(chunk), np.uint32)
    for number, field in enumerate(wanted):
        if field in chunk.fields:
            stored = chunk.fields.index(field)
            raw[number] = chunk.raw[stored]
            valid |= ((chunk.valid >> np.uint32(stored)) & np.uint32(1)) << np.uint32(number)
    return raw, valid


def warm(feature_set: FeatureSet) -> None:
    """Compile or load every kernel, so that the first event does not wait for it.

    Call it where the job opens; with a filled numba cache it takes well under a second.
    """
    for entity in feature_set.entities:
        store = ShardStore(feature_set, entity.name)
        batch = EventBatch(
            kind=np.array([Kind.EVENT, Kind.LABEL], np.uint8),
            key=StringColumn.from_texts(["warm", "warm"]),
            event_time_ms=np.array([0, 1], np.int64),
            event_id=StringColumn.from_texts(["a", "a"]),
            fields={},
        )
        delta = store.process(batch).delta
        ShardStore(feature_set, entity.name).restore([delta])
