"""Compiled kernels over one log: room, search, insertion, labels, tiles."""

from __future__ import annotations

import numpy as np
from numba import njit

from jobs.windows._layout import (
    ARENA_TOP,
    BASE,
    BLOOM_FROM,
    CAPACITY,
    COLUMNS,
    FIRST_CAPACITY,
    FREE_REGIONS,
    HEAD,
    HINT,
    HOT_EVENTS,
    LABEL_COLUMN,
    LARGEST,
    LAST,
    NEED,
    NEVER,
    ROWS,
    TILE,
    Floats,
    Longs,
    Words,
)

__all__ = [
    "bloom_add",
    "bloom_bits",
    "find_id",
    "insert",
    "last_at_or_before",
    "make_room",
    "passes",
    "region_words",
    "release",
    "set_label",
    "size_class",
    "thin",
    "tile_start",
    "tiled_until",
]


@njit(cache=True, nogil=True, error_model="numpy")
def region_words(capacity: int, columns: int) -> int:
    return capacity * columns + (capacity >> 2 if capacity >= BLOOM_FROM else 0)


@njit(cache=True, nogil=True, error_model="numpy")
def size_class(capacity: int) -> int:
    size = 0
    while capacity > FIRST_CAPACITY:
        capacity >>= 1
        size += 1
    return size


@njit(cache=True, nogil=True, error_model="numpy")
def release(arena: Longs, meta: Longs, base: int, capacity: int) -> None:
    size = size_class(capacity)
    arena[base] = meta[FREE_REGIONS + size]
    meta[FREE_REGIONS + size] = base + 1


@njit(cache=True, nogil=True, error_model="numpy")
def bloom_bits(h: int) -> int:
    one = np.uint64(1)
    u = np.uint64(h)
    low = np.uint64(63)
    bits = one << (u & low)
    bits |= one << ((u >> np.uint64(6)) & low)
    bits |= one << ((u >> np.uint64(12)) & low)
    return int(np.int64(bits))


@njit(cache=True, nogil=True, error_model="numpy")
def bloom_add(arena: Longs, base: int, capacity: int, columns: int, h: int) -> None:
    at = base + capacity * columns + ((h >> 20) & ((capacity >> 2) - 1))
    arena[at] |= bloom_bits(h)


@njit(cache=True, nogil=True, error_model="numpy")
def last_at_or_before(arena: Longs, times: int, low: int, high: int, moment: int) -> int:
    """Return the last row in [low, high] with time <= moment, or low (a sentinel) when none."""
    while low < high:
        middle = (low + high + 1) >> 1
        if arena[times + middle] <= moment:
            low = middle
        else:
            high = middle - 1
    return low


@njit(cache=True, nogil=True, error_model="numpy")
def tile_start(moment: int, tile: int) -> int:
    """Return the start of the tile (start, start + tile] that holds a moment."""
    return ((moment - 1) // tile) * tile


@njit(cache=True, nogil=True, error_model="numpy")
def tiled_until(arena: Longs, slots: Longs, s: int, plan: Longs, cut: int) -> int:
    """Return the time up to which a key's log is tiles; NEVER while it is not hot.

    A pure function of the events in sight: whether older rows were thinned already cannot be seen.
    """
    if plan[HOT_EVENTS] == 0 or slots[s, LAST] - slots[s, HEAD] <= plan[HOT_EVENTS]:
        return NEVER
    row = slots[s, BASE] + slots[s, LAST] - plan[HOT_EVENTS]
    if arena[row] <= tile_start(cut, plan[TILE]):
        return NEVER
    return tile_start(arena[row + 1], plan[TILE])


@njit(cache=True, nogil=True, error_model="numpy")
def thin(arena: Longs, slots: Longs, s: int, plan: Longs, cut: int) -> None:
    """Keep one row per tile in the tiled part: prefix sums make that row the whole tile."""
    until = tiled_until(arena, slots, s, plan, cut)
    if until == NEVER:
        return
    base, capacity = slots[s, BASE], slots[s, CAPACITY]
    head, last = slots[s, HEAD], slots[s, LAST]
    write = head
    for row in range(head + 1, last + 1):
        time = arena[base + row]
        keep = True
        if time <= until and row < last:
            following = arena[base + row + 1]
            keep = tile_start(following, plan[TILE]) != tile_start(time, plan[TILE])
        if keep:
            write += 1
            if write != row:
                for c in range(plan[COLUMNS]):
                    arena[base + c * capacity + write] = arena[base + c * capacity + row]
    slots[s, LAST] = write


@njit(cache=True, nogil=True, error_model="numpy")
def make_room(arena: Longs, slots: Longs, meta: Longs, plan: Longs, s: int, cut: int) -> bool:
    """Make room for one more row; False, with meta[NEED] in words, when the arena is full."""
    capacity, last = slots[s, CAPACITY], slots[s, LAST]
    if last + 1 < capacity:
        return True
    columns = plan[COLUMNS]
    base, head = slots[s, BASE], slots[s, HEAD]
    size = FIRST_CAPACITY
    if capacity > 0:
        if plan[HOT_EVENTS] > 0:
            thin(arena, slots, s, plan, cut)
            last = slots[s, LAST]
            cut = tile_start(cut, plan[TILE])
        # Rows at or before the cut are out of every window for good.
        before = head
        head = last_at_or_before(arena, base, head, last, cut)
        slots[s, HEAD] = head
        meta[ROWS] -= head - before
        rows = last - head
        # A region a quarter free is packed where it is; one that is fuller is doubled, so a row is
        # copied at most four times on average.
        size = capacity
        if 4 * (rows + 1) > 3 * capacity:
            size = 2 * capacity
    if size == capacity:
        target = base
    else:
        index = FREE_REGIONS + size_class(size)
        if meta[index] != 0:
            target = meta[index] - 1
            meta[index] = arena[target]
        else:
            target = meta[ARENA_TOP]
            words = region_words(size, columns)
            if target + words > len(arena):
                meta[NEED] = words
                return False
            meta[ARENA_TOP] = target + words
    if capacity == 0:
        for c in range(columns):
            arena[target + c * size] = 0
        last = 0
        head = 0
    else:
        rows = last - head
        for c in range(columns):
            source = base + c * capacity + head
            to = target + c * size
            if size == capacity:
                for j in range(rows + 1):
                    arena[to + j] = arena[source + j]
            else:
                arena[to : to + rows + 1] = arena[source : source + rows + 1]
        if size != capacity:
            release(arena, meta, base, capacity)
        slots[s, HINT] = max(0, slots[s, HINT] - head)
        last = rows
    slots[s, BASE] = target
    slots[s, CAPACITY] = size
    slots[s, HEAD] = 0
    slots[s, LAST] = last
    if size >= BLOOM_FROM:
        at = target + size * columns
        for j in range(size >> 2):
            arena[at + j] = 0
        for row in range(1, last + 1):
            bloom_add(arena, target, size, columns, arena[target + size + row])
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def find_id(
    arena: Longs,
    slots: Longs,
    s: int,
    plan: Longs,
    h: int,
    cut: int,
    hinted: bool,
) -> int:
    """Return the row of an event id among the rows after the cut, or 0."""
    base, capacity = slots[s, BASE], slots[s, CAPACITY]
    head, last = slots[s, HEAD], slots[s, LAST]
    if last == head or h == 0:
        return 0
    ids = base + capacity
    if capacity >= BLOOM_FROM:
        word = arena[ids + capacity * (plan[COLUMNS] - 1) + ((h >> 20) & ((capacity >> 2) - 1))]
        bits = bloom_bits(h)
        if word & bits != bits:
            return 0
    if hinted:
        # Labels mostly come in the order of their events: look just after the last one found.
        hint = slots[s, HINT]
        for row in range(max(hint, head + 1), min(hint + 16, last + 1)):
            if arena[ids + row] == h and arena[base + row] > cut:
                slots[s, HINT] = row
                return row
    row = last
    while row > head:
        # Sixteen at a time without leaving early, which the compiler turns into vector compares.
        first = max(head + 1, row - 15)
        found = 0
        for j in range(first, row + 1):
            if arena[ids + j] == h:
                found = j
        if found != 0:
            if arena[base + found] > cut:
                slots[s, HINT] = found
                return found
            return 0
        row = first - 1
    return 0


@njit(cache=True, nogil=True, error_model="numpy")
def passes(
    filters: Longs,
    filter_operands: Floats,
    f: int,
    raw: Longs,
    valid: Words,
    i: int,
    fraud: bool,
) -> bool:
    if filters[f, 0] == 0:
        return fraud
    j = filters[f, 1]
    if (valid[i] >> j) & 1 == 0:
        return False
    op = filters[f, 2]
    if filters[f, 0] == 2:
        same = raw[j, i] == filters[f, 3]
        return bool(same if op == 0 else not same)
    v = float(raw[j, i])
    w = filter_operands[f]
    if op == 0:
        return bool(v == w)
    if op == 1:
        return bool(v != w)
    if op == 2:
        return bool(v < w)
    if op == 3:
        return bool(v <= w)
    if op == 4:
        return bool(v > w)
    return bool(v >= w)


@njit(cache=True, nogil=True, error_model="numpy")
def insert(
    arena: Longs,
    floats: Floats,
    slots: Longs,
    meta: Longs,
    plan: Longs,
    raws: Longs,
    measures: Longs,
    filters: Longs,
    filter_operands: Floats,
    s: int,
    row: int,
    time: int,
    h: int,
    raw: Longs,
    valid: Words,
    i: int,
    label: int,
) -> None:
    """Put row i of the batch at `row` of the log, moving later rows up and adding to their sums."""
    base, capacity, last = slots[s, BASE], slots[s, CAPACITY], slots[s, LAST]
    columns = plan[COLUMNS]
    later = last + 1 - row
    if later > 0:
        for c in range(columns):
            at = base + c * capacity
            for j in range(last, row - 1, -1):
                arena[at + j + 1] = arena[at + j]
    arena[base + row] = time
    arena[base + capacity + row] = h
    fraud = False
    if plan[LABEL_COLUMN] >= 0:
        arena[base + plan[LABEL_COLUMN] * capacity + row] = label
        fraud = label & 2 != 0
    for j in range(len(raws)):
        known = (valid[i] >> j) & 1 == 1
        if raws[j, 0] == 1:
            at = base + raws[j, 1] * capacity + row
            if known:
                arena[at] = raw[j, i]
            else:
                floats[at] = np.nan
        elif raws[j, 0] == 2 and raws[j, 1] >= 0:
            # Each row of a text column knows when the same value occurred before it.
            values = base + raws[j, 1] * capacity
            previous = base + raws[j, 2] * capacity
            v = raw[j, i] if known else 0
            arena[values + row] = v
            arena[previous + row] = NEVER
            if v != 0:
                for k in range(row - 1, slots[s, HEAD], -1):
                    if arena[values + k] == v:
                        arena[previous + row] = arena[base + k]
                        break
                for k in range(row + 1, last + 2):
                    if arena[values + k] == v:
                        arena[previous + k] = time
                        break
    for m in range(len(measures)):
        j, f = measures[m, 1], measures[m, 2]
        step = 0
        if (j < 0 or (valid[i] >> j) & 1 == 1) and (
            f < 0 or passes(filters, filter_operands, f, raw, valid, i, fraud)
        ):
            step = 1
            if measures[m, 0] == 1:
                step = raw[j, i]
            elif measures[m, 0] == 2:
                step = raw[j, i] * raw[j, i]
                size = abs(raw[j, i])
                meta[LARGEST] = max(meta[LARGEST], size)
        at = base + measures[m, 3] * capacity + row
        arena[at] = arena[at - 1] + step
        if later > 0 and step != 0:
            for k in range(1, later + 1):
                arena[at + k] += step
    slots[s, LAST] = last + 1
    meta[ROWS] += 1
    if capacity >= BLOOM_FROM and h != 0:
        bloom_add(arena, base, capacity, columns, h)


@njit(cache=True, nogil=True, error_model="numpy")
def set_label(
    arena: Longs,
    slots: Longs,
    plan: Longs,
    raws: Longs,
    measures: Longs,
    filters: Longs,
    s: int,
    row: int,
    label: int,
) -> bool:
    """Apply a label to a row; False when its revision is not above the one in force."""
    base, capacity, last = slots[s, BASE], slots[s, CAPACITY], slots[s, LAST]
    at = base + plan[LABEL_COLUMN] * capacity + row
    before = arena[at]
    if before & 1 == 1 and label >> 2 <= before >> 2:
        return False
    arena[at] = label
    sign = ((label >> 1) & 1) - ((before >> 1) & 1)
    if sign == 0:
        return True
    for m in range(len(measures)):
        f = measures[m, 2]
        if f < 0 or filters[f, 0] != 0:
            continue
        j = measures[m, 1]
        step = 1
        if j >= 0:
            counts = base + raws[j, 2] * capacity + row
            sums = base + raws[j, 1] * capacity + row
            step = arena[counts] - arena[counts - 1]
            if measures[m, 0] == 1:
                step = arena[sums] - arena[sums - 1]
        step *= sign
        if step != 0:
            column = base + measures[m, 3] * capacity
            for k in range(row, last + 1):
                arena[column + k] += step
    return True
