"""Compiled kernels over one shard's store: find a key's log, insert, label, evaluate, prune.

All kernels are in one file because numba's cache is keyed by the file of the outermost function: a
change in another file would leave stale machine code behind.

A key's log is one contiguous *region* of an int64 arena: `capacity` rows, stored column after column, so
that a window's bounds and its prefix sums are near each other in memory. Row `head` is a sentinel that
carries the prefix sums of all that was pruned; the entries are rows `head + 1` to `last`, ordered by
event time and, where times are equal, by arrival. A sum over a window is the difference of two rows of a
prefix column, exact in wrapping 64-bit arithmetic whatever was pruned before. Regions of one size are
recycled through free lists. From 8 rows on, a region ends with a small Bloom filter of event ids.
"""

from __future__ import annotations

import math

import numpy as np
from numba import boolean, float64, int32, int64, njit, types, uint8, uint32

__all__ = ["hash_column", "pack_keys", "process_rows", "prune_slots", "rebuild_table"]

# Columns of `slots`, one row per key; slot 0 is the scratch log of events that are not counted.
BASE, CAPACITY, HEAD, LAST, HASH, KEY_AT, KEY_LENGTH, WAITING, HINT, NEWEST, KEY_ROOM = range(11)
SLOT_WIDTH = 12
# Cells of `meta`.
CLOCK, SLOTS, FREE_SLOT, ARENA_TOP, KEY_TOP, KEYS, WAITS, FREE_WAIT, CURSOR, NEED, LARGEST, ROWS = (
    range(12)
)
FREE_REGIONS = 16
META_WIDTH = 64
# Cells of `plan`.
(
    COLUMNS,
    LABEL_COLUMN,
    HORIZON,
    REACH,
    HOT_EVENTS,
    TILE,
    WEIGHT_COLUMN,
    LATITUDE,
    LONGITUDE,
) = range(9)
PLAN_WIDTH = 9
NEVER = -(1 << 62)
FIRST_CAPACITY = 4
# What the u16 of a chunk holds; a longer key is treated as none.
LONGEST_KEY = 65_535
# Below 8 rows one pass over the ids costs less than keeping a filter of them.
BLOOM_FROM = 8

LATE, TOO_LATE, UNKNOWN_LABEL, NULL_KEY, TRUNCATED, TILED, STALE_LABEL = 2, 4, 8, 16, 32, 64, 128
DUPLICATE = 1

(
    OP_COUNT,
    OP_SUM,
    OP_MEAN,
    OP_RATIO,
    OP_MIN,
    OP_MAX,
    OP_STD,
    OP_ZSCORE,
    OP_DISTINCT,
    OP_LAST,
    OP_SINCE_LAST,
    OP_SINCE_FIRST,
    OP_CHANGE,
    OP_DECAYED_COUNT,
    OP_DECAYED_SUM,
    OP_FIRST_SEEN_KEY,
    OP_FIRST_SEEN_VALUE,
    OP_DISTANCE,
    OP_SPEED,
) = range(19)

def _read_only(kind, dimensions=1):
    # A plain array passes where a read-only one is declared; the reverse would compile again.
    return types.Array(kind, dimensions, "C", readonly=True)


# Explicit types: one compilation, whatever the arrays of a batch are made of.
_LONGS, _TABLE = int64[::1], int64[:, ::1]
_LONGS_IN, _TABLE_IN = _read_only(int64), _read_only(int64, 2)
_STRINGS = (_read_only(uint8), _LONGS_IN, _read_only(int32))
_PROCESS = int64(
    int64, _read_only(uint8), _LONGS_IN, *_STRINGS, _LONGS_IN, _LONGS_IN, _TABLE_IN,
    _read_only(uint32), _LONGS, _LONGS, _TABLE, uint8[::1], _TABLE, _LONGS, _LONGS, float64[::1],
    _LONGS_IN, _TABLE_IN, _TABLE_IN, _TABLE_IN, _read_only(float64), _TABLE_IN, _TABLE_IN,
    _read_only(float64, 2), boolean, float64[:, ::1], uint8[::1], uint8[::1],
)  # fmt: skip
_PRUNE = int64(int64, _LONGS, _TABLE, _TABLE, _LONGS, _LONGS, _LONGS_IN)
# Mean Earth radius of IUGG, km.
EARTH_KM = 6371.0088


@njit(cache=True, nogil=True)
def _hash_bytes(data, start, length):
    k1 = np.uint64(0x9E3779B97F4A7C15)
    k2 = np.uint64(0xC2B2AE3D27D4EB4F)
    h = (np.uint64(length) + np.uint64(1)) * k2
    at = start
    end = start + length
    while at < end:
        word = np.uint64(0)
        stop = min(at + 8, end)
        shift = np.uint64(0)
        for j in range(at, stop):
            word |= np.uint64(data[j]) << shift
            shift += np.uint64(8)
        h = (h ^ word) * k1
        h ^= h >> np.uint64(32)
        at = stop
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= k2
    h ^= h >> np.uint64(29)
    if h == np.uint64(0):
        h = np.uint64(1)
    return np.int64(h)


@njit(types.void(*_STRINGS, _LONGS), cache=True, nogil=True)
def hash_column(data, starts, lengths, out):
    """Write a 64-bit hash of each string to `out`; null gives 0, which no string hashes to."""
    for i in range(len(starts)):
        out[i] = 0 if lengths[i] < 0 else _hash_bytes(data, starts[i], np.int64(lengths[i]))


@njit(int64(*_STRINGS, _LONGS_IN, uint8[::1]), cache=True, nogil=True)
def pack_keys(data, starts, lengths, rows, out):
    """Copy the keys of `rows` one after another into `out`; return the bytes written."""
    at = 0
    for i in rows:
        for j in range(np.int64(lengths[i])):
            out[at] = data[starts[i] + j]
            at += 1
    return at


@njit(cache=True, nogil=True)
def _find_slot(table, slots, key_bytes, data, start, length, h):
    mask = len(table) - 1
    tag = h >> 32
    at = h & mask
    while True:
        entry = table[at]
        if entry == 0:
            return 0
        if entry >> 32 == tag:
            s = entry & 0xFFFFFFFF
            if slots[s, HASH] == h and slots[s, KEY_LENGTH] == length:
                origin = slots[s, KEY_AT]
                same = True
                for j in range(length):
                    if key_bytes[origin + j] != data[start + j]:
                        same = False
                        break
                if same:
                    return s
        at = (at + 1) & mask


@njit(cache=True, nogil=True)
def _create_slot(table, slots, key_bytes, meta, data, start, length, h):
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
    slots[s, NEWEST] = NEVER
    mask = len(table) - 1
    at = h & mask
    while table[at] != 0:
        at = (at + 1) & mask
    table[at] = ((h >> 32) << 32) | s
    meta[KEYS] += 1
    return s


@njit(cache=True, nogil=True)
def _drop_slot(table, slots, meta, s):
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


@njit(cache=True, nogil=True)
def _words(capacity, columns):
    return capacity * columns + (capacity >> 2 if capacity >= BLOOM_FROM else 0)


@njit(cache=True, nogil=True)
def _size_class(capacity):
    size = 0
    while capacity > FIRST_CAPACITY:
        capacity >>= 1
        size += 1
    return size


@njit(cache=True, nogil=True)
def _release(arena, meta, base, capacity):
    size = _size_class(capacity)
    arena[base] = meta[FREE_REGIONS + size]
    meta[FREE_REGIONS + size] = base + 1


@njit(cache=True, nogil=True)
def _bloom_bits(h):
    one = np.uint64(1)
    u = np.uint64(h)
    low = np.uint64(63)
    bits = one << (u & low)
    bits |= one << ((u >> np.uint64(6)) & low)
    bits |= one << ((u >> np.uint64(12)) & low)
    return np.int64(bits)


@njit(cache=True, nogil=True)
def _bloom_add(arena, base, capacity, columns, h):
    at = base + capacity * columns + ((h >> 20) & ((capacity >> 2) - 1))
    arena[at] |= _bloom_bits(h)


@njit(cache=True, nogil=True)
def _last_at_or_before(arena, times, low, high, moment):
    """Return the last row in [low, high] with time <= moment, or low (a sentinel) when none."""
    while low < high:
        middle = (low + high + 1) >> 1
        if arena[times + middle] <= moment:
            low = middle
        else:
            high = middle - 1
    return low


@njit(cache=True, nogil=True)
def _tile_start(moment, tile):
    """Return the start of the tile (start, start + tile] that holds a moment."""
    return ((moment - 1) // tile) * tile


@njit(cache=True, nogil=True)
def _tiled_until(arena, slots, s, plan, cut):
    """Return the time up to which a key's log is tiles; NEVER while it is not hot.

    A pure function of the events in sight: whether older rows were thinned already cannot be seen.
    """
    if plan[HOT_EVENTS] == 0 or slots[s, LAST] - slots[s, HEAD] <= plan[HOT_EVENTS]:
        return NEVER
    row = slots[s, BASE] + slots[s, LAST] - plan[HOT_EVENTS]
    if arena[row] <= _tile_start(cut, plan[TILE]):
        return NEVER
    return _tile_start(arena[row + 1], plan[TILE])


@njit(cache=True, nogil=True)
def _thin(arena, slots, s, plan, cut):
    """Keep one row per tile in the tiled part: prefix sums make that row the whole tile."""
    until = _tiled_until(arena, slots, s, plan, cut)
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
            keep = _tile_start(following, plan[TILE]) != _tile_start(time, plan[TILE])
        if keep:
            write += 1
            if write != row:
                for c in range(plan[COLUMNS]):
                    arena[base + c * capacity + write] = arena[base + c * capacity + row]
    slots[s, LAST] = write


@njit(cache=True, nogil=True)
def _make_room(arena, slots, meta, plan, s, cut):
    """Make room for one more row; False, with meta[NEED] in words, when the arena is full."""
    capacity, last = slots[s, CAPACITY], slots[s, LAST]
    if last + 1 < capacity:
        return True
    columns = plan[COLUMNS]
    base, head = slots[s, BASE], slots[s, HEAD]
    size = FIRST_CAPACITY
    if capacity > 0:
        if plan[HOT_EVENTS] > 0:
            _thin(arena, slots, s, plan, cut)
            last = slots[s, LAST]
            cut = _tile_start(cut, plan[TILE])
        # Rows at or before the cut are out of every window for good.
        before = head
        head = _last_at_or_before(arena, base, head, last, cut)
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
        index = FREE_REGIONS + _size_class(size)
        if meta[index] != 0:
            target = meta[index] - 1
            meta[index] = arena[target]
        else:
            target = meta[ARENA_TOP]
            words = _words(size, columns)
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
            _release(arena, meta, base, capacity)
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
            _bloom_add(arena, target, size, columns, arena[target + size + row])
    return True


@njit(cache=True, nogil=True)
def _find_id(arena, slots, s, plan, h, cut, hinted):
    """Return the row of an event id among the rows after the cut, or 0."""
    base, capacity = slots[s, BASE], slots[s, CAPACITY]
    head, last = slots[s, HEAD], slots[s, LAST]
    if last == head or h == 0:
        return 0
    ids = base + capacity
    if capacity >= BLOOM_FROM:
        word = arena[ids + capacity * (plan[COLUMNS] - 1) + ((h >> 20) & ((capacity >> 2) - 1))]
        bits = _bloom_bits(h)
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


@njit(cache=True, nogil=True)
def _passes(filters, filter_operands, f, raw, valid, i, fraud):
    if filters[f, 0] == 0:
        return fraud
    j = filters[f, 1]
    if (valid[i] >> j) & 1 == 0:
        return False
    op = filters[f, 2]
    if filters[f, 0] == 2:
        same = raw[j, i] == filters[f, 3]
        return same if op == 0 else not same
    v = float(raw[j, i])
    w = filter_operands[f]
    if op == 0:
        return v == w
    if op == 1:
        return v != w
    if op == 2:
        return v < w
    if op == 3:
        return v <= w
    if op == 4:
        return v > w
    return v >= w


@njit(cache=True, nogil=True)
def _insert(arena, floats, slots, meta, plan, raws, measures, filters, filter_operands, s, row,
            time, h, raw, valid, i, label):
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
            f < 0 or _passes(filters, filter_operands, f, raw, valid, i, fraud)
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
        _bloom_add(arena, base, capacity, columns, h)


@njit(cache=True, nogil=True)
def _set_label(arena, slots, plan, raws, measures, filters, s, row, label):
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


@njit(cache=True, nogil=True)
def _std_numerator(arena, sums, counts, low, high, n, total, squares, largest):
    """Return the sum of squared deviations from the mean, from exact integers.

    With c the integer part of the mean, Q = sum((v - c)^2) = squares - 2 c total + n c^2. In wrapping
    64-bit arithmetic that is exact as long as Q itself fits, however large the terms; where it may not
    fit, Q is added up in 128 bits. Both ways give the same Q, so the choice cannot be seen.
    """
    c = total // n
    rest = float(total - c * n)
    bound = 2.0 * float(largest)
    if float(n) * bound * bound < 9.0e18:
        q = float(np.uint64(squares - 2 * c * total + n * c * c))
    else:
        upper = np.uint64(0)
        lower = np.uint64(0)
        half = np.uint64(32)
        mask = np.uint64(0xFFFFFFFF)
        for row in range(low + 1, high + 1):
            if arena[counts + row] == arena[counts + row - 1]:
                continue
            d = np.uint64(abs(arena[sums + row] - arena[sums + row - 1] - c))
            a = d >> half
            b = d & mask
            middle = a * b
            add = b * b
            part = add + ((middle << np.uint64(33)))
            carry = np.uint64(1) if part < add else np.uint64(0)
            upper += a * a + (middle >> np.uint64(31)) + carry
            before = lower
            lower += part
            if lower < before:
                upper += np.uint64(1)
        q = float(upper) * 18446744073709551616.0 + float(lower)
    return q - rest * rest / float(n)


@njit(cache=True, nogil=True)
def _kilometres(latitude_a, longitude_a, latitude_b, longitude_b):
    """Return the great-circle distance by the haversine formula on a sphere of mean radius."""
    a = math.radians(latitude_a)
    b = math.radians(latitude_b)
    across = math.sin(math.radians(longitude_b - longitude_a) / 2.0)
    along = math.sin((b - a) / 2.0)
    h = along * along + math.cos(a) * math.cos(b) * across * across
    return 2.0 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


@njit(cache=True, nogil=True)
def _evaluate(arena, floats, slots, meta, plan, bounds, features, feature_numbers, s, row, cut,
              lows, highs, starts, out):
    """Write every feature of the row; True when a window was rounded to tiles or cut by them."""
    base, capacity, head = slots[s, BASE], slots[s, CAPACITY], slots[s, HEAD]
    time = arena[base + row]
    until = _tiled_until(arena, slots, s, plan, cut)
    tiled = False
    for b in range(len(bounds)):
        window, delay = bounds[b, 0], bounds[b, 1]
        end = time - delay
        start = max(end - window, cut)
        if until != NEVER and start < until:
            edge = _last_at_or_before(arena, base, head, row, until)
            if bounds[b, 2] == 1:
                start = _tile_start(start, plan[TILE])
                if end < until and delay > 0:
                    end = max(start, _tile_start(end, plan[TILE]))
            else:
                start = until
            if _last_at_or_before(arena, base, head, row, _tile_start(cut, plan[TILE])) < edge:
                tiled = True
        high = row
        if delay > 0:
            high = _last_at_or_before(arena, base, head, row, end)
        highs[b] = high
        starts[b] = start
        lows[b] = _last_at_or_before(arena, base, head, high, start)
    for k in range(len(features)):
        op, b = features[k, 0], features[k, 1]
        low, high, start = lows[b], highs[b], starts[b]
        first = base + features[k, 2] * capacity
        second = base + features[k, 3] * capacity
        result = feature_numbers[k, 0]
        divisor = feature_numbers[k, 2]
        if op == OP_COUNT:
            n = high - low
            if features[k, 2] >= 0:
                n = arena[first + high] - arena[first + low]
            result = float(n)
        elif op == OP_SUM:
            result = float(arena[first + high] - arena[first + low]) / divisor
        elif op == OP_MEAN:
            n = arena[second + high] - arena[second + low]
            if n > 0:
                result = float(arena[first + high] - arena[first + low]) / (float(n) * divisor)
        elif op == OP_RATIO:
            n = high - low
            if features[k, 3] >= 0:
                n = arena[second + high] - arena[second + low]
            if n > 0:
                result = float(arena[first + high] - arena[first + low]) / float(n)
        elif op == OP_MIN or op == OP_MAX:
            found = False
            best = 0
            for j in range(low + 1, high + 1):
                if arena[second + j] != arena[second + j - 1]:
                    v = arena[first + j] - arena[first + j - 1]
                    if not found or (v < best if op == OP_MIN else v > best):
                        best = v
                        found = True
            if found:
                result = float(best) / divisor
        elif op == OP_STD or op == OP_ZSCORE:
            n = arena[second + high] - arena[second + low]
            present = op == OP_STD or arena[second + row] != arena[second + row - 1]
            if n >= 2 and present:
                third = base + features[k, 4] * capacity
                sum_ = arena[first + high] - arena[first + low]
                squares = arena[third + high] - arena[third + low]
                numerator = _std_numerator(
                    arena, first, second, low, high, n, sum_, squares, meta[LARGEST]
                )
                deviation = math.sqrt(max(0.0, numerator) / float(n - 1))
                if op == OP_STD:
                    result = deviation / divisor
                elif deviation > 0.0:
                    v = float(arena[first + row] - arena[first + row - 1])
                    result = (v - float(sum_) / float(n)) / deviation
        elif op == OP_DISTINCT:
            n = 0
            for j in range(low + 1, high + 1):
                if arena[first + j] != 0 and arena[second + j] <= start:
                    n += 1
            result = float(n)
        elif op == OP_LAST:
            stop = high if bounds[b, 1] > 0 else high - 1
            for j in range(stop, low, -1):
                if arena[second + j] != arena[second + j - 1]:
                    result = float(arena[first + j] - arena[first + j - 1]) / divisor
                    break
        elif op == OP_SINCE_LAST:
            if high - 1 > low:
                result = float(time - arena[base + high - 1]) / 1000.0
        elif op == OP_SINCE_FIRST:
            result = float(time - arena[base + low + 1]) / 1000.0
        elif op == OP_CHANGE:
            if arena[second + row] != arena[second + row - 1]:
                for j in range(low + 1, high):
                    if arena[second + j] != arena[second + j - 1]:
                        elapsed = time - arena[base + j]
                        if elapsed > 0:
                            v = arena[first + row] - arena[first + row - 1]
                            w = arena[first + j] - arena[first + j - 1]
                            result = float(v - w) / divisor / (float(elapsed) / 1000.0)
                        break
        elif op == OP_DECAYED_COUNT or op == OP_DECAYED_SUM:
            sum_f = 0.0
            for j in range(high, low, -1):
                weight = 2.0 ** (-float(time - arena[base + j]) / feature_numbers[k, 1])
                if op == OP_DECAYED_SUM:
                    weight *= float(arena[first + j] - arena[first + j - 1])
                sum_f += weight
            result = sum_f / divisor
        elif op == OP_FIRST_SEEN_KEY:
            result = 1.0 if high - 1 == low else 0.0
        elif op == OP_FIRST_SEEN_VALUE:
            if arena[first + row] != 0:
                result = 0.0 if arena[second + row] > start else 1.0
        elif op == OP_DISTANCE or op == OP_SPEED:
            latitudes = base + plan[LATITUDE] * capacity
            longitudes = base + plan[LONGITUDE] * capacity
            if not (math.isnan(floats[latitudes + row]) or math.isnan(floats[longitudes + row])):
                for j in range(row - 1, low, -1):
                    if math.isnan(floats[latitudes + j]) or math.isnan(floats[longitudes + j]):
                        continue
                    result = _kilometres(
                        floats[latitudes + j],
                        floats[longitudes + j],
                        floats[latitudes + row],
                        floats[longitudes + row],
                    )
                    if op == OP_SPEED:
                        elapsed = max(1000, time - arena[base + j])
                        result /= float(elapsed) / 3_600_000.0
                    break
        out[k] = result
    return tiled


@njit(cache=True, nogil=True)
def _take_waiting(slots, waits, meta, plan, s, h, time, clock):
    """Remove and return the label that waits for an event id, or 0."""
    before = 0
    at = slots[s, WAITING]
    while at != 0:
        following = waits[at, 3]
        # A label waits until it is as old as an event that no window can reach.
        expired = waits[at, 2] <= clock - 2 * plan[HORIZON]
        matches = waits[at, 0] == h and waits[at, 2] > time - plan[HORIZON]
        if expired or matches:
            if before == 0:
                slots[s, WAITING] = following
            else:
                waits[before, 3] = following
            waits[at, 3] = meta[FREE_WAIT]
            meta[FREE_WAIT] = at
            if matches and not expired:
                return waits[at, 1]
        else:
            before = at
        at = following
    return 0


@njit(cache=True, nogil=True)
def _let_wait(slots, waits, meta, plan, s, h, label, time):
    """Keep a label until its event comes; False when a higher or equal revision waits already."""
    at = slots[s, WAITING]
    while at != 0:
        if waits[at, 0] == h and waits[at, 2] > meta[CLOCK] - 2 * plan[HORIZON]:
            if label >> 2 <= waits[at, 1] >> 2:
                return False
            waits[at, 1] = label
            waits[at, 2] = max(time, waits[at, 2])
            return True
        at = waits[at, 3]
    at = meta[FREE_WAIT]
    if at != 0:
        meta[FREE_WAIT] = waits[at, 3]
    else:
        at = meta[WAITS]
        meta[WAITS] = at + 1
    waits[at, 0] = h
    waits[at, 1] = label
    waits[at, 2] = time
    waits[at, 3] = slots[s, WAITING]
    slots[s, WAITING] = at
    return True


@njit(cache=True, nogil=True)
def _cut_of(slots, meta, plan, s, time):
    """Return the time up to which events of a key are out of sight once `time` is seen.

    A key's clock is its newest event, but never more than one horizon behind the shard's, so that keys
    that fell silent can be dropped. Only for events that far behind does sharding matter at all.
    """
    newest = slots[s, NEWEST] if s != 0 else NEVER
    behind = max(meta[CLOCK], time) - plan[HORIZON]
    return max(max(newest, time), behind) - plan[HORIZON]


@njit(cache=True, nogil=True)
def _label_row(slots, waits, table, key_bytes, meta, arena, plan, raws, measures, filters, s, h,
               label, time, key_data, key_start, key_length, key_hash):
    """Apply a label, or let it wait for its event; return its flags, plus 256 when it counted."""
    row = 0
    if s != 0:
        seen = _cut_of(slots, meta, plan, s, NEVER)
        seen = max(seen, _tiled_until(arena, slots, s, plan, seen))
        row = _find_id(arena, slots, s, plan, h, seen, True)
    if row != 0:
        if _set_label(arena, slots, plan, raws, measures, filters, s, row, label):
            return 256
        return STALE_LABEL
    if h == 0 or time <= meta[CLOCK] - 2 * plan[HORIZON]:
        return UNKNOWN_LABEL
    if s == 0:
        s = _create_slot(table, slots, key_bytes, meta, key_data, key_start, key_length, key_hash)
    if _let_wait(slots, waits, meta, plan, s, h, label, time):
        return UNKNOWN_LABEL | 256
    return UNKNOWN_LABEL | STALE_LABEL


@njit(_PROCESS, cache=True, nogil=True)
def process_rows(first, kind, times, key_data, key_starts, key_lengths, hashes, ids, raw, valid,
                 labels, table, slots, key_bytes, waits, meta, arena, floats, plan, raws, measures,
                 filters, filter_operands, bounds, features, feature_numbers, evaluate, out, flags,
                 changed):
    """Process rows from `first` on in arrival order; return the row reached.

    That is the number of rows, or the row for which the arena is full, with the words needed in
    meta[NEED]; nothing of that row was changed. `labels` holds revision * 4 + fraud * 2 + 1 for a label
    and, when a log is restored, for an event that was labelled on arrival; else 0.
    """
    n = len(kind)
    lows = np.zeros(len(bounds), np.int64)
    highs = np.zeros(len(bounds), np.int64)
    starts = np.zeros(len(bounds), np.int64)
    # Looking all keys up first, and touching what a row will need, lets the processor overlap the cache
    # misses of many rows; done row by row they would add up to more than all the work.
    found = np.zeros(n, np.int64)
    touched = 0
    columns = plan[COLUMNS]
    for i in range(first, n):
        if 0 <= key_lengths[i] <= LONGEST_KEY:
            s = _find_slot(table, slots, key_bytes, key_data, key_starts[i],
                           np.int64(key_lengths[i]), hashes[i])
            found[i] = s
            base, capacity, last = slots[s, BASE], slots[s, CAPACITY], slots[s, LAST]
            for c in range(columns):
                touched += arena[base + c * capacity + last]
            if capacity >= BLOOM_FROM:
                word = (ids[i] >> 20) & ((capacity >> 2) - 1)
                touched += arena[base + columns * capacity + word]
            if evaluate:
                for row in range(max(slots[s, HEAD], last - 128), last, 8):
                    touched += arena[base + row]
    meta[META_WIDTH - 1] = touched
    for i in range(first, n):
        if kind[i] > 1 or (kind[i] == 1 and plan[LABEL_COLUMN] < 0):
            continue
        time = times[i]
        h = ids[i]
        length = np.int64(key_lengths[i])
        alone = length < 0 or length > LONGEST_KEY
        s = found[i]
        if s == 0 and not alone:
            s = _find_slot(table, slots, key_bytes, key_data, key_starts[i], length, hashes[i])
        if alone:
            flags[i] |= NULL_KEY
        if kind[i] == 1:
            if not alone:
                answer = _label_row(slots, waits, table, key_bytes, meta, arena, plan, raws,
                                    measures, filters, s, h, labels[i], time, key_data,
                                    key_starts[i], length, hashes[i])
                flags[i] |= answer & 255
                changed[i] = answer >> 8
            continue
        row = 0
        label = labels[i]
        cut = NEVER
        if not alone:
            cut = _cut_of(slots, meta, plan, s, time)
            tiles = _tiled_until(arena, slots, s, plan, cut) if s != 0 else NEVER
            if time <= cut or time <= tiles:
                flags[i] |= TOO_LATE
                alone = True
                cut = NEVER
            elif s != 0:
                row = _find_id(arena, slots, s, plan, h, max(cut, tiles), False)
        if alone:
            # Scored as if it were the only event of its key, in the scratch log.
            s = 0
            slots[0, HEAD] = 0
            slots[0, LAST] = 0
            for c in range(plan[COLUMNS]):
                arena[slots[0, BASE] + c * slots[0, CAPACITY]] = 0
            meta[ROWS] -= 1
        if row != 0:
            flags[i] |= DUPLICATE
        else:
            if not alone:
                if s == 0:
                    s = _create_slot(table, slots, key_bytes, meta, key_data, key_starts[i],
                                     length, hashes[i])
                if not _make_room(arena, slots, meta, plan, s, cut):
                    flags[i] = 0
                    return i
            last = slots[s, LAST]
            row = last + 1
            if not alone:
                newest = slots[s, NEWEST]
                if time < newest:
                    flags[i] |= LATE
                    if time - plan[REACH] < cut:
                        flags[i] |= TRUNCATED
                    row = 1 + _last_at_or_before(
                        arena, slots[s, BASE], slots[s, HEAD], last, time
                    )
                if slots[s, WAITING] != 0:
                    clock = max(meta[CLOCK], time)
                    waiting = _take_waiting(slots, waits, meta, plan, s, h, time, clock)
                    if label == 0:
                        label = waiting
                        labels[i] = label
                changed[i] = 1
                slots[s, NEWEST] = max(newest, time)
                meta[CLOCK] = max(meta[CLOCK], time)
            _insert(arena, floats, slots, meta, plan, raws, measures, filters, filter_operands, s,
                    row, time, h, raw, valid, i, label)
        if evaluate and _evaluate(arena, floats, slots, meta, plan, bounds, features,
                                  feature_numbers, s, row, cut, lows, highs, starts, out[i]):
            flags[i] |= TILED
    return n


@njit(_PRUNE, cache=True, nogil=True)
def prune_slots(limit, table, slots, waits, meta, arena, plan):
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
            _release(arena, meta, slots[s, BASE], slots[s, CAPACITY])
            slots[s, BASE] = 0
            slots[s, CAPACITY] = 0
            slots[s, HEAD] = 0
            slots[s, LAST] = 0
            slots[s, NEWEST] = NEVER
        if kept == 0:
            _drop_slot(table, slots, meta, s)
            dropped += 1
    return dropped


@njit(types.void(_LONGS, _TABLE, _LONGS), cache=True, nogil=True)
def rebuild_table(table, slots, meta):
    """Fill an empty hash table, whose length is a power of two, with all keys."""
    mask = len(table) - 1
    for s in range(1, meta[SLOTS]):
        if slots[s, KEY_LENGTH] >= 0:
            at = slots[s, HASH] & mask
            while table[at] != 0:
                at = (at + 1) & mask
            table[at] = ((slots[s, HASH] >> 32) << 32) | s
