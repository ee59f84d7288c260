"""Compiled kernels that rebuild a store from its log: rows are sorted by key, then put in place.

A log is in arrival order and a store in order of keys. Row by row each row would wait for the
memory of its key; sorted first, each key is read and written in one go. Only the order within a key
matters, and counting places keeps it. A *record* is one row on its way: slot, valid bits and kind
in one word, then time, id hash, where labels are used the label and the clock that the row met, and
the fields.
"""

from __future__ import annotations

from numba import float64, int32, int64, types, uint8, uint32

from jobs.windows._compile import compiled, kernel
from jobs.windows._event_kernels import add_event, cut_of, restore_label
from jobs.windows._key_kernels import create_slot, find_slot, same_bytes
from jobs.windows._layout import (
    AHEAD,
    CAPACITY,
    CLOCK,
    COLUMNS,
    FIRST_CAPACITY,
    HASH,
    KEY_AT,
    KEY_LENGTH,
    KEY_TOP,
    KEYS,
    LABEL_COLUMN,
    LONGS,
    LONGS_IN,
    SLOTS,
    STRINGS,
    TABLE,
    TABLE_IN,
    Bytes,
    Floats,
    Ints,
    Longs,
    Words,
    read_only,
)
from jobs.windows._log_kernels import find_id, fits, make_room, region_words, tiled_until

__all__ = [
    "RECORD_WIDTH",
    "add_keys",
    "count_rows",
    "find_known",
    "place_records",
    "sort_rows",
    "words_needed",
]

RECORD_WIDTH = 3
"""Words of a record before its label, clock and fields."""
_SLOT, _KIND_BITS = 34, 2


@compiled(int64(*STRINGS, LONGS_IN, int32[::1], LONGS, TABLE, uint8[::1]))
def find_known(
    key_data: Bytes,
    key_starts: Longs,
    key_lengths: Ints,
    hashes: Longs,
    found: Ints,
    table: Longs,
    slots: Longs,
    key_bytes: Bytes,
) -> int:
    """Write the slot of each row's key, 0 where it is not seen yet.

    Another thread may add keys and grow the arrays meanwhile: what is found is compared byte for
    byte, and what lies beyond the arrays at hand is not seen yet. What is returned means nothing
    and keeps the compiler from leaving loads out.
    """
    touched = 0
    mask = len(table) - 1
    for first in range(0, len(found), AHEAD):
        end = min(len(found), first + AHEAD)
        # Stage by stage, as when a batch is looked up: the loads of a stage do not wait for each
        # other.
        for i in range(first, end):
            found[i] = table[hashes[i] & mask] & 0x7FFFFFFF
        for i in range(first, end):
            touched += slots[found[i], KEY_AT] if found[i] < len(slots) else 0
        for i in range(first, end):
            h, length = hashes[i], int(key_lengths[i])
            at = h & mask
            found[i] = 0
            while True:
                entry = table[at]
                if entry == 0:
                    break
                s = entry & 0xFFFFFFFF
                if entry >> 32 == h >> 32 and s < len(slots) and slots[s, HASH] == h:
                    origin = slots[s, KEY_AT]
                    if (
                        slots[s, KEY_LENGTH] == length
                        and origin + length <= len(key_bytes)
                        and same_bytes(key_bytes, origin, key_data, key_starts[i], length)
                    ):
                        found[i] = s
                        break
                at = (at + 1) & mask
    return int(touched)


@compiled(int64(int64, *STRINGS, LONGS_IN, int32[::1], LONGS, TABLE, uint8[::1], LONGS))
def add_keys(
    first: int,
    key_data: Bytes,
    key_starts: Longs,
    key_lengths: Ints,
    hashes: Longs,
    found: Ints,
    table: Longs,
    slots: Longs,
    key_bytes: Bytes,
    meta: Longs,
) -> int:
    """Give a slot to the rows that have none; return the row reached.

    That is the number of rows, or one whose key is new and has no room.
    """
    for i in range(first, len(found)):
        if found[i] != 0:
            continue
        start, length, h = key_starts[i], int(key_lengths[i]), hashes[i]
        s = find_slot(table, slots, key_bytes, key_data, start, length, h)
        if s == 0:
            if (
                2 * (meta[KEYS] + 1) > len(table)
                or meta[SLOTS] + 1 > len(slots)
                or meta[KEY_TOP] + length > len(key_bytes)
            ):
                return i
            s = create_slot(table, slots, key_bytes, meta, key_data, start, length, h)
        found[i] = s
    return len(found)


@kernel
def _room(slots: Longs, rooms: Longs, s: int) -> int:
    # Rows that a key will hold: what is a horizon older than the newest event goes as more come.
    if slots[s, CAPACITY] > 0:
        return 0
    return int(rooms[0, s] if rooms[0, s] > 0 else rooms[1, s])


@compiled(int64(TABLE, TABLE, LONGS_IN))
def words_needed(slots: Longs, rooms: Longs, plan: Longs) -> int:
    """Return about how many words of the arena the keys in `rooms` will take."""
    words = 0
    for s in range(1, rooms.shape[1]):
        wanted = _room(slots, rooms, s)
        if wanted > 0:
            size = FIRST_CAPACITY
            while not fits(0, wanted, size):
                size *= 2
            words += region_words(size, plan[COLUMNS])
    return words


@compiled(types.void(read_only(int32), LONGS))
def count_rows(found: Ints, counts: Longs) -> None:
    """Add the rows of each slot to its count."""
    for i in range(len(found)):
        counts[found[i]] += 1


@compiled(
    types.void(
        read_only(int32), read_only(uint8), read_only(uint32), LONGS_IN, LONGS_IN, LONGS_IN,
        TABLE_IN, LONGS, TABLE, LONGS, TABLE,
    )
)  # fmt: skip
def sort_rows(
    found: Ints,
    kind: Bytes,
    valid: Words,
    times: Longs,
    ids: Longs,
    labels: Longs,
    raw: Longs,
    places: Longs,
    scratch: Longs,
    meta: Longs,
    records: Longs,
) -> None:
    """Write each row as a record to the next place of its slot, and move the clock on.

    A row that waits for its label, or a label for its event, goes by the clock as it was: what
    came later, of whichever key, had not hidden anything yet.
    """
    n = len(found)
    clock = meta[CLOCK]
    targets = scratch[0]
    fields = records.shape[1] - len(raw)
    for first in range(0, n, AHEAD):
        end = min(n, first + AHEAD)
        for i in range(first, end):
            at = places[found[i]]
            targets[i - first] = at
            places[found[i]] = at + 1
        for i in range(first, end):
            at = targets[i - first]
            bits = (int(valid[i]) << _KIND_BITS) | min(int(kind[i]), 3)
            records[at, 0] = (int(found[i]) << _SLOT) | bits
            records[at, 1] = times[i]
            records[at, 2] = ids[i]
            if fields > RECORD_WIDTH:
                records[at, RECORD_WIDTH] = labels[i]
                records[at, RECORD_WIDTH + 1] = clock
            if kind[i] == 0:
                clock = max(clock, times[i])
            for j in range(len(raw)):
                records[at, fields + j] = raw[j, i]
    meta[CLOCK] = clock


@compiled(
    int64(
        int64, TABLE, TABLE, LONGS, TABLE, uint8[::1], TABLE, LONGS, LONGS, float64[::1],
        LONGS_IN, TABLE_IN, TABLE_IN, TABLE_IN, read_only(float64),
    )
)  # fmt: skip
def place_records(
    first: int,
    records: Longs,
    rooms: Longs,
    table: Longs,
    slots: Longs,
    key_bytes: Bytes,
    waits: Longs,
    meta: Longs,
    arena: Longs,
    floats: Floats,
    plan: Longs,
    raws: Longs,
    measures: Longs,
    filters: Longs,
    filter_operands: Floats,
) -> int:
    """Count records from `first` on, which stand key by key; return the record reached.

    That is the number of records, or the one for which the arena is full, as in
    `process_rows`.
    """
    n = len(records)
    labelled = plan[LABEL_COLUMN] >= 0
    raw = records[:, RECORD_WIDTH + 2 * labelled :].T
    newest = meta[CLOCK]
    run_end = first
    for i in range(first, n):
        s = records[i, 0] >> _SLOT
        kind = records[i, 0] & 3
        bits = (records[i, 0] >> _KIND_BITS) & 0xFFFFFFFF
        time, h = records[i, 1], records[i, 2]
        label = records[i, RECORD_WIDTH] if labelled else 0
        if kind > 1 or (kind == 1 and not labelled):
            continue
        if labelled:
            meta[CLOCK] = records[i, RECORD_WIDTH + 1]
        if kind == 1:
            restore_label(
                slots, waits, meta, arena, plan, raws, measures, filters, s, h, label, time
            )
            continue
        cut = cut_of(slots, meta, plan, s, time)
        seen = max(cut, tiled_until(arena, slots, s, plan, cut))
        if time <= seen or find_id(arena, slots, s, plan, h, seen, False) != 0:
            continue
        # Room for all rows of the key at once.
        if i >= run_end:
            run_end = i + 1
            while run_end < n and records[run_end, 0] >> _SLOT == s:
                run_end += 1
            wanted = max(run_end - i, _room(slots, rooms, s))
            if not make_room(arena, slots, meta, plan, s, cut, wanted):
                meta[CLOCK] = newest
                return i
        add_event(
            arena, floats, slots, waits, meta, plan, raws, measures, filters,
            filter_operands, s, time, h, raw, bits, i, label, True,
        )  # fmt: skip
    meta[CLOCK] = newest
    return n
