"""Compiled kernels over one log: room, search, insertion, labels, tiles."""

from __future__ import annotations

import numpy as np

from jobs.windows._compile import inlined, kernel
from jobs.windows._layout import (
    ARENA_TOP,
    BASE,
    BLOOM_FROM,
    CAPACITY,
    COLUMNS,
    EDGE_HINT,
    EDGE_HINTS,
    FIRST_CAPACITY,
    FREE_REGIONS,
    HEAD,
    HINT,
    HOT_EVENTS,
    LABEL_COLUMN,
    LARGEST,
    LAST,
    LONG_FROM,
    NEED,
    NEVER,
    ROWS,
    TILE,
    Floats,
    Longs,
)

__all__ = [
    "bloom_add",
    "bloom_bits",
    "filter_words",
    "find_id",
    "fits",
    "insert",
    "last_at_or_before",
    "last_near",
    "make_room",
    "may_hold",
    "passes",
    "region_words",
    "release",
    "set_label",
    "size_class",
    "thin",
    "tile_start",
    "tiled_until",
]


@inlined
def filter_words(capacity: int) -> int:
    """Return the words, a power of two, of the filter of ids of a region that has one."""
    return capacity >> 2 if capacity < LONG_FROM else capacity >> 1


@kernel
def region_words(capacity: int, columns: int) -> int:
    return capacity * columns + (filter_words(capacity) if capacity >= BLOOM_FROM else 0)


@kernel
def size_class(capacity: int) -> int:
    size = 0
    while capacity > FIRST_CAPACITY:
        capacity >>= 1
        size += 1
    return size


@kernel
def release(arena: Longs, meta: Longs, base: int, capacity: int) -> None:
    size = size_class(capacity)
    arena[base] = meta[FREE_REGIONS + size]
    meta[FREE_REGIONS + size] = base + 1


@inlined
def bloom_bits(h: int) -> int:
    one = np.uint64(1)
    u = np.uint64(h)
    low = np.uint64(63)
    bits = one << (u & low)
    bits |= one << ((u >> np.uint64(6)) & low)
    bits |= one << ((u >> np.uint64(12)) & low)
    return int(np.int64(bits))


@inlined
def bloom_add(arena: Longs, base: int, capacity: int, columns: int, h: int) -> None:
    first = base + capacity * columns
    mask = filter_words(capacity) - 1
    arena[first + ((h >> 20) & mask)] |= bloom_bits(h)
    if capacity >= LONG_FROM:
        arena[first + ((h >> 38) & mask)] |= bloom_bits(h >> 18)


@inlined
def may_hold(arena: Longs, base: int, capacity: int, columns: int, h: int) -> bool:
    """Return False when a region with a filter surely has no event of an id."""
    first = base + capacity * columns
    mask = filter_words(capacity) - 1
    bits = bloom_bits(h)
    if arena[first + ((h >> 20) & mask)] & bits != bits:
        return False
    if capacity < LONG_FROM:
        return True
    bits = bloom_bits(h >> 18)
    return bool(arena[first + ((h >> 38) & mask)] & bits == bits)


@kernel
def last_at_or_before(
    arena: Longs, base: int, columns: int, low: int, high: int, moment: int
) -> int:
    """Return the last row in [low, high] with time <= moment, or low (a sentinel) when none."""
    while low < high:
        middle = (low + high + 1) >> 1
        if arena[base + middle * columns] <= moment:
            low = middle
        else:
            high = middle - 1
    return low


@inlined
def last_near(
    arena: Longs, base: int, columns: int, head: int, row: int, moment: int, hint: int
) -> int:
    """Return the same as `last_at_or_before`, whatever the hint; fast when it is near.

    A window's edge moves on by about a row with every event of a key, so where it was is a line in
    the cache where a search from scratch reads several.
    """
    h = min(max(hint, head), row)
    if h > head and arena[base + h * columns] > moment:
        return last_at_or_before(arena, base, columns, head, h - 1, moment)
    for _ in range(4):
        if h >= row or arena[base + (h + 1) * columns] > moment:
            return h
        h += 1
    return last_at_or_before(arena, base, columns, h, row, moment)


@inlined
def tile_start(moment: int, tile: int) -> int:
    """Return the start of the tile (start, start + tile] that holds a moment."""
    return ((moment - 1) // tile) * tile


@inlined
def tiled_until(arena: Longs, slots: Longs, s: int, plan: Longs, cut: int) -> int:
    """Return the time up to which a key's log is tiles; NEVER while it is not hot.

    A pure function of the events in sight: whether older rows were thinned already cannot be seen.
    """
    if plan[HOT_EVENTS] == 0 or slots[s, LAST] - slots[s, HEAD] <= plan[HOT_EVENTS]:
        return NEVER
    columns = plan[COLUMNS]
    at = slots[s, BASE] + (slots[s, LAST] - plan[HOT_EVENTS]) * columns
    if arena[at] <= tile_start(cut, plan[TILE]):
        return NEVER
    return tile_start(arena[at + columns], plan[TILE])


@kernel
def thin(arena: Longs, slots: Longs, s: int, plan: Longs, cut: int) -> None:
    """Keep one row per tile in the tiled part: prefix sums make that row the whole tile."""
    until = tiled_until(arena, slots, s, plan, cut)
    if until == NEVER:
        return
    base, columns = slots[s, BASE], plan[COLUMNS]
    head, last = slots[s, HEAD], slots[s, LAST]
    write = head
    for row in range(head + 1, last + 1):
        at = base + row * columns
        time = arena[at]
        keep = True
        if time <= until and row < last:
            following = arena[at + columns]
            keep = tile_start(following, plan[TILE]) != tile_start(time, plan[TILE])
        if keep:
            write += 1
            if write != row:
                for c in range(columns):
                    arena[base + write * columns + c] = arena[at + c]
    slots[s, LAST] = write


@inlined
def fits(rows: int, wanted: int, size: int) -> bool:
    """Return whether so many rows leave a region the room that it needs to grow.

    Rows that come one by one are moved seldom when a quarter is free; when many come at once, as
    from a log, their number is known and memory counts.
    """
    if wanted == 1:
        return 4 * (rows + 1) <= 3 * size
    return 8 * (rows + wanted) <= 7 * size


@kernel
def make_room(
    arena: Longs, slots: Longs, meta: Longs, plan: Longs, s: int, cut: int, wanted: int
) -> bool:
    """Make room for `wanted` more rows; False, with meta[NEED] in words, when the arena is full."""
    capacity, last = slots[s, CAPACITY], slots[s, LAST]
    if last + wanted < capacity:
        return True
    columns = plan[COLUMNS]
    base, head = slots[s, BASE], slots[s, HEAD]
    size = FIRST_CAPACITY
    rows = 0
    if capacity > 0:
        if plan[HOT_EVENTS] > 0:
            thin(arena, slots, s, plan, cut)
            last = slots[s, LAST]
            cut = tile_start(cut, plan[TILE])
        # Rows at or before the cut are out of every window for good.
        before = head
        head = last_at_or_before(arena, base, columns, head, last, cut)
        slots[s, HEAD] = head
        meta[ROWS] -= head - before
        rows = last - head
        size = capacity
    # A region a quarter free is packed where it is; one that is fuller is doubled, so a row is
    # copied at most four times on average.
    while not fits(rows, wanted, size):
        size *= 2
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
            arena[target + c] = 0
    else:
        source = base + head * columns
        words = (rows + 1) * columns
        for j in range(words):
            arena[target + j] = arena[source + j]
        if size != capacity:
            release(arena, meta, base, capacity)
        slots[s, HINT] = max(0, slots[s, HINT] - head)
        for e in range(EDGE_HINTS):
            slots[s, EDGE_HINT + e] = max(0, slots[s, EDGE_HINT + e] - head)
    slots[s, BASE] = target
    slots[s, CAPACITY] = size
    slots[s, HEAD] = 0
    slots[s, LAST] = rows
    if size >= BLOOM_FROM:
        at = target + size * columns
        for j in range(filter_words(size)):
            arena[at + j] = 0
        for row in range(1, rows + 1):
            bloom_add(arena, target, size, columns, arena[target + row * columns + 1])
    return True


@inlined
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
    base, capacity, columns = slots[s, BASE], slots[s, CAPACITY], plan[COLUMNS]
    head, last = slots[s, HEAD], slots[s, LAST]
    if last == head or h == 0:
        return 0
    if capacity >= BLOOM_FROM and not may_hold(arena, base, capacity, columns, h):
        return 0
    ids = base + 1
    if hinted:
        # Labels mostly come in the order of their events: look just after the last one found.
        hint = slots[s, HINT]
        for row in range(max(hint, head + 1), min(hint + 16, last + 1)):
            if arena[ids + row * columns] == h and arena[base + row * columns] > cut:
                slots[s, HINT] = row
                return row
    for row in range(last, head, -1):
        if arena[ids + row * columns] == h:
            if arena[base + row * columns] > cut:
                slots[s, HINT] = row
                return row
            return 0
    return 0


@inlined
def passes(
    filters: Longs,
    filter_operands: Floats,
    f: int,
    raw: Longs,
    bits: int,
    i: int,
    fraud: bool,
) -> bool:
    if filters[f, 0] == 0:
        return fraud
    j = filters[f, 1]
    if (bits >> j) & 1 == 0:
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


@inlined
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
    bits: int,
    i: int,
    label: int,
) -> None:
    """Put row i of the batch, valid by `bits`, at `row` of the log; later rows move up and add."""
    base, capacity, last = slots[s, BASE], slots[s, CAPACITY], slots[s, LAST]
    columns = plan[COLUMNS]
    place = base + row * columns
    later = last + 1 - row
    if later > 0:
        for j in range(base + (last + 1) * columns - 1, place - 1, -1):
            arena[j + columns] = arena[j]
    arena[place] = time
    arena[place + 1] = h
    fraud = False
    if plan[LABEL_COLUMN] >= 0:
        arena[place + plan[LABEL_COLUMN]] = label
        fraud = label & 2 != 0
    for j in range(len(raws)):
        known = (bits >> j) & 1 == 1
        if raws[j, 0] == 1:
            at = place + raws[j, 1]
            if known:
                arena[at] = raw[j, i]
            else:
                floats[at] = np.nan
        elif raws[j, 0] == 2 and raws[j, 1] >= 0:
            # Each row of a text column knows when the same value occurred before it.
            values = base + raws[j, 1]
            previous = base + raws[j, 2]
            v = raw[j, i] if known else 0
            arena[values + row * columns] = v
            arena[previous + row * columns] = NEVER
            if v != 0:
                for k in range(row - 1, slots[s, HEAD], -1):
                    if arena[values + k * columns] == v:
                        arena[previous + row * columns] = arena[base + k * columns]
                        break
                for k in range(row + 1, last + 2):
                    if arena[values + k * columns] == v:
                        arena[previous + k * columns] = time
                        break
    for m in range(len(measures)):
        j, f = measures[m, 1], measures[m, 2]
        step = 0
        if (j < 0 or (bits >> j) & 1 == 1) and (
            f < 0 or passes(filters, filter_operands, f, raw, bits, i, fraud)
        ):
            step = 1
            if measures[m, 0] == 1:
                step = raw[j, i]
            elif measures[m, 0] == 2:
                step = raw[j, i] * raw[j, i]
                size = abs(raw[j, i])
                meta[LARGEST] = max(meta[LARGEST], size)
        at = place + measures[m, 3]
        arena[at] = arena[at - columns] + step
        if later > 0 and step != 0:
            for k in range(1, later + 1):
                arena[at + k * columns] += step
    slots[s, LAST] = last + 1
    meta[ROWS] += 1
    if capacity >= BLOOM_FROM and h != 0:
        bloom_add(arena, base, capacity, columns, h)


@kernel
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
    base, columns, last = slots[s, BASE], plan[COLUMNS], slots[s, LAST]
    place = base + row * columns
    at = place + plan[LABEL_COLUMN]
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
            counts = place + raws[j, 2]
            sums = place + raws[j, 1]
            step = arena[counts] - arena[counts - columns]
            if measures[m, 0] == 1:
                step = arena[sums] - arena[sums - columns]
        step *= sign
        if step != 0:
            column = base + measures[m, 3]
            for k in range(row, last + 1):
                arena[column + k * columns] += step
    return True
