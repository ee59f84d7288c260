"""Compiled kernels over one shard: rows of a batch in arrival order, and pruning."""

from __future__ import annotations

import numpy as np
from numba import types

from jobs.windows._compile import compiled, kernel
from jobs.windows._event_kernels import add_event, cut_of, label_row
from jobs.windows._feature_kernels import evaluate_row
from jobs.windows._key_kernels import (
    create_slot,
    drop_slot,
    find_slot,
)
from jobs.windows._layout import (
    AHEAD,
    BASE,
    BLOOM_FROM,
    CAPACITY,
    CHANGED,
    CHANGED_BYTES,
    CLOCK,
    COLUMNS,
    CURSOR,
    DUPLICATE,
    EDGE_HINT,
    EDGE_HINTS,
    FREE_WAIT,
    HASH,
    HEAD,
    HORIZON,
    KEY_AT,
    KEY_LENGTH,
    LABEL_CLOCK,
    LABEL_COLUMN,
    LAST,
    LATE,
    LONGEST_KEY,
    LONGS,
    META_WIDTH,
    NEVER,
    NEWEST,
    NULL_KEY,
    PROCESS,
    PRUNE,
    PRUNE_SLOTS,
    REACH,
    ROWS,
    SLOTS,
    TABLE,
    TILED,
    TOO_LATE,
    TRUNCATED,
    WAITING,
    Bytes,
    Floats,
    Ints,
    Longs,
    Words,
)
from jobs.windows._log_kernels import (
    filter_words,
    find_id,
    make_room,
    release,
    tiled_until,
)

__all__ = [
    "process_rows",
    "prune_slots",
    "rebuild_table",
]


@kernel
def _look_up(
    first: int,
    end: int,
    key_data: Bytes,
    key_starts: Longs,
    key_lengths: Ints,
    hashes: Longs,
    ids: Longs,
    table: Longs,
    slots: Longs,
    key_bytes: Bytes,
    arena: Longs,
    plan: Longs,
    found: Longs,
) -> int:
    """Find the slots of some rows and touch the lines that they will need, stage by stage.

    Row by row each row would wait for memory five times over; within a stage the loads of all rows
    are independent, so the processor has a dozen under way at once. The sum that is returned only
    keeps the compiler from leaving the loads out.
    """
    mask = len(table) - 1
    columns = plan[COLUMNS]
    touched = 0
    for i in range(first, end):
        found[i - first] = table[hashes[i] & mask]
    for i in range(first, end):
        s = found[i - first] & 0xFFFFFFFF
        found[i - first] = slots[s, KEY_AT]
        touched += slots[s, WAITING]
    for i in range(first, end):
        touched += key_bytes[found[i - first]]
    for i in range(first, end):
        s = 0
        if 0 <= key_lengths[i] <= LONGEST_KEY:
            s = find_slot(
                table, slots, key_bytes, key_data, key_starts[i], int(key_lengths[i]), hashes[i]
            )
        found[i - first] = s
        base, capacity = slots[s, BASE], slots[s, CAPACITY]
        last = slots[s, LAST]
        touched += arena[base + last * columns]
        touched += arena[base + min(last + 1, max(0, capacity - 1)) * columns]
        if capacity >= BLOOM_FROM:
            word = (ids[i] >> 20) & (filter_words(capacity) - 1)
            touched += arena[base + capacity * columns + word]
        for e in range(EDGE_HINTS):
            hint = slots[s, EDGE_HINT + e]
            if hint > 0:
                touched += arena[base + hint * columns]
    return int(touched)


@kernel
def _prune(
    limit: int,
    table: Longs,
    slots: Longs,
    waits: Longs,
    meta: Longs,
    arena: Longs,
    plan: Longs,
) -> int:
    """Look at the next `limit` slots and drop keys whose every event is out of sight.

    Cannot be seen in any feature: what is dropped is before the cut of whatever comes.
    """
    dropped = 0
    gone = meta[CLOCK] - 2 * plan[HORIZON]
    for _ in range(limit):
        if meta[SLOTS] <= 1:
            break
        s = meta[CURSOR] + 1
        if s >= meta[SLOTS]:
            s = 1
        meta[CURSOR] = s
        if slots[s, KEY_LENGTH] < 0 or slots[s, NEWEST] > gone:
            continue
        at = slots[s, WAITING]
        kept = 0
        while at != 0:
            following = waits[at, 3]
            if waits[at, 2] <= gone:
                waits[at, 3] = meta[FREE_WAIT]
                meta[FREE_WAIT] = at
            else:
                waits[at, 3] = kept
                kept = at
            at = following
        slots[s, WAITING] = kept
        if slots[s, CAPACITY] > 0:
            meta[ROWS] -= slots[s, LAST] - slots[s, HEAD]
            release(arena, meta, slots[s, BASE], slots[s, CAPACITY])
            slots[s, BASE] = 0
            slots[s, CAPACITY] = 0
            slots[s, HEAD] = 0
            slots[s, LAST] = 0
            slots[s, NEWEST] = NEVER
        if kept == 0:
            drop_slot(table, slots, meta, s)
            dropped += 1
    return dropped


@compiled(PROCESS)
def process_rows(
    first: int,
    kind: Bytes,
    times: Longs,
    key_data: Bytes,
    key_starts: Longs,
    key_lengths: Ints,
    hashes: Longs,
    ids: Longs,
    raw: Longs,
    valid: Words,
    labels: Longs,
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
    edges: Longs,
    bounds: Longs,
    features: Longs,
    feature_numbers: Floats,
    scratch: Longs,
    out: Floats,
    flags: Bytes,
    changed: Bytes,
) -> int:
    """Process rows from `first` on in arrival order; return the row reached.

    That is the number of rows, or the row for which the arena is full, with the words needed in
    meta[NEED]; nothing of that row was changed. `labels` holds revision * 4 + fraud * 2 + 1
    for a label, and for an event that a label waited for; else 0. `times` of a label that was
    applied becomes that of its event: it is kept as long.
    `out`, `flags` and `changed` are written whole; after a batch a few silent keys are dropped.
    """
    n = len(kind)
    if first == 0:
        flags[:] = 0
        changed[:] = 0
        meta[CHANGED] = 0
        meta[CHANGED_BYTES] = 0
        meta[LABEL_CLOCK] = NEVER
    places, lows, highs = scratch[0], scratch[1], scratch[2]
    starts, found = scratch[3], scratch[4]
    ahead = first
    for i in range(first, n):
        if i == ahead:
            origin, ahead = ahead, min(n, ahead + AHEAD)
            meta[META_WIDTH - 2] += _look_up(
                origin,
                ahead,
                key_data,
                key_starts,
                key_lengths,
                hashes,
                ids,
                table,
                slots,
                key_bytes,
                arena,
                plan,
                found,
            )
        if kind[i] != 0:
            out[i] = np.nan
        if kind[i] > 1 or (kind[i] == 1 and plan[LABEL_COLUMN] < 0):
            continue
        time = times[i]
        h = ids[i]
        length = int(key_lengths[i])
        alone = bool(length < 0 or length > LONGEST_KEY)
        s = found[i - origin]
        if s == 0 and not alone:
            s = find_slot(table, slots, key_bytes, key_data, key_starts[i], length, hashes[i])
        if alone:
            flags[i] |= NULL_KEY
        if kind[i] == 1:
            if not alone:
                answer, times[i] = label_row(
                    slots,
                    waits,
                    table,
                    key_bytes,
                    meta,
                    arena,
                    plan,
                    raws,
                    measures,
                    filters,
                    s,
                    h,
                    labels[i],
                    time,
                    key_data,
                    key_starts[i],
                    length,
                    hashes[i],
                )
                flags[i] |= answer & 255
                if answer > 255:
                    changed[i] = 1
                    meta[CHANGED] += 1
                    meta[CHANGED_BYTES] += length
                    meta[LABEL_CLOCK] = max(meta[LABEL_CLOCK], times[i])
            continue
        row = 0
        cut = NEVER
        if not alone:
            cut = cut_of(slots, meta, plan, s, time)
            tiles = tiled_until(arena, slots, s, plan, cut) if s != 0 else NEVER
            if time <= cut or time <= tiles:
                flags[i] |= TOO_LATE
                alone = True
                cut = NEVER
            elif s != 0:
                row = find_id(arena, slots, s, plan, h, max(cut, tiles), False)
        if alone:
            # Scored as if it were the only event of its key, in the scratch log.
            s = 0
            slots[0, HEAD] = 0
            slots[0, LAST] = 0
            for c in range(plan[COLUMNS]):
                arena[slots[0, BASE] + c] = 0
            meta[ROWS] -= 1
        if row != 0:
            flags[i] |= DUPLICATE
        else:
            if not alone:
                if s == 0:
                    s = create_slot(
                        table,
                        slots,
                        key_bytes,
                        meta,
                        key_data,
                        key_starts[i],
                        length,
                        hashes[i],
                    )
                if not make_room(arena, slots, meta, plan, s, cut, 1):
                    flags[i] = 0
                    return i
                if time < slots[s, NEWEST]:
                    flags[i] |= LATE
                    if time - plan[REACH] < cut:
                        flags[i] |= TRUNCATED
                changed[i] = 1
                meta[CHANGED] += 1
                meta[CHANGED_BYTES] += length
            row, labels[i] = add_event(
                arena,
                floats,
                slots,
                waits,
                meta,
                plan,
                raws,
                measures,
                filters,
                filter_operands,
                s,
                time,
                h,
                raw,
                int(valid[i]),
                i,
                labels[i],
                False,
            )
        if evaluate_row(
            arena,
            floats,
            slots,
            meta,
            plan,
            edges,
            bounds,
            features,
            feature_numbers,
            s,
            row,
            cut,
            places,
            lows,
            highs,
            starts,
            out[i],
        ):
            flags[i] |= TILED
    _prune(PRUNE_SLOTS, table, slots, waits, meta, arena, plan)
    return n


@compiled(PRUNE)
def prune_slots(
    limit: int,
    table: Longs,
    slots: Longs,
    waits: Longs,
    meta: Longs,
    arena: Longs,
    plan: Longs,
) -> int:
    """Do `_prune`."""
    return int(_prune(limit, table, slots, waits, meta, arena, plan))


@compiled(types.void(LONGS, TABLE, LONGS))
def rebuild_table(table: Longs, slots: Longs, meta: Longs) -> None:
    """Fill an empty hash table, whose length is a power of two, with all keys."""
    mask = len(table) - 1
    for s in range(1, meta[SLOTS]):
        if slots[s, KEY_LENGTH] >= 0:
            at = slots[s, HASH] & mask
            while table[at] != 0:
                at = (at + 1) & mask
            table[at] = ((slots[s, HASH] >> 32) << 32) | s
