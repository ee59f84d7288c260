"""Compiled kernels that read one row of a log: every aggregation over every window."""

from __future__ import annotations

import math

import numpy as np

from jobs.windows._compile import inlined, kernel
from jobs.windows._layout import (
    BASE,
    COLUMNS,
    EDGE_HINT,
    EDGE_HINTS,
    HEAD,
    LARGEST,
    LAST,
    LATITUDE,
    LONGITUDE,
    NEVER,
    OP_CHANGE,
    OP_COUNT,
    OP_DECAYED_COUNT,
    OP_DECAYED_SUM,
    OP_DISTANCE,
    OP_DISTINCT,
    OP_FIRST_SEEN_KEY,
    OP_FIRST_SEEN_VALUE,
    OP_LAST,
    OP_MAX,
    OP_MEAN,
    OP_MIN,
    OP_RATIO,
    OP_SINCE_FIRST,
    OP_SINCE_LAST,
    OP_SPEED,
    OP_STD,
    OP_SUM,
    OP_ZSCORE,
    TILE,
    Floats,
    Longs,
)
from jobs.windows._log_kernels import (
    last_at_or_before,
    last_near,
    tile_start,
    tiled_until,
)

__all__ = [
    "evaluate_row",
    "kilometres",
    "std_numerator",
]


# Mean Earth radius of IUGG, km.
EARTH_KM = 6371.0088


@kernel
def std_numerator(
    arena: Longs,
    sums: int,
    counts: int,
    columns: int,
    low: int,
    high: int,
    n: int,
    total: int,
    squares: int,
    largest: int,
) -> float:
    """Return the sum of squared deviations from the mean, from exact integers.

    With c the integer part of the mean, Q = sum((v - c)^2) = squares - 2 c total + n c^2. In
    wrapping 64-bit arithmetic that is exact as long as Q itself fits, however large the terms;
    where it may not fit, Q is added up in 128 bits. Both ways give the same Q, so the choice
    cannot be seen.
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
        for at in range((low + 1) * columns, (high + 1) * columns, columns):
            if arena[counts + at] == arena[counts + at - columns]:
                continue
            d = np.uint64(abs(arena[sums + at] - arena[sums + at - columns] - c))
            a = d >> half
            b = d & mask
            middle = a * b
            add = b * b
            part = add + (middle << np.uint64(33))
            carry = np.uint64(1) if part < add else np.uint64(0)
            upper += a * a + (middle >> np.uint64(31)) + carry
            before = lower
            lower += part
            if lower < before:
                upper += np.uint64(1)
        q = float(upper) * 18446744073709551616.0 + float(lower)
    return q - rest * rest / float(n)


@kernel
def kilometres(
    latitude_a: float,
    longitude_a: float,
    latitude_b: float,
    longitude_b: float,
) -> float:
    """Return the great-circle distance by the haversine formula on a sphere of mean radius."""
    a = math.radians(latitude_a)
    b = math.radians(latitude_b)
    across = math.sin(math.radians(longitude_b - longitude_a) / 2.0)
    along = math.sin((b - a) / 2.0)
    h = along * along + math.cos(a) * math.cos(b) * across * across
    return 2.0 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


@inlined
def _find_windows(
    arena: Longs,
    slots: Longs,
    plan: Longs,
    edges: Longs,
    bounds: Longs,
    s: int,
    row: int,
    cut: int,
    places: Longs,
    lows: Longs,
    highs: Longs,
    starts: Longs,
) -> None:
    """Find where each window of a row begins and ends in a log without tiles."""
    base, head, columns = slots[s, BASE], slots[s, HEAD], plan[COLUMNS]
    time = arena[base + row * columns]
    for e in range(len(edges)):
        moment = max(time - edges[e], cut)
        hint = slots[s, EDGE_HINT + e] if e < EDGE_HINTS else head
        place = last_near(arena, base, columns, head, row, moment, hint)
        places[e] = place
        # A late event would leave its hints behind those of the newest.
        if e < EDGE_HINTS and row == slots[s, LAST]:
            slots[s, EDGE_HINT + e] = place
    for b in range(len(bounds)):
        lows[b] = places[bounds[b, 3]]
        highs[b] = row if bounds[b, 4] < 0 else places[bounds[b, 4]]
        starts[b] = max(time - edges[bounds[b, 3]], cut)


@kernel
def _find_tiled_windows(
    arena: Longs,
    slots: Longs,
    plan: Longs,
    bounds: Longs,
    s: int,
    row: int,
    cut: int,
    until: int,
    lows: Longs,
    highs: Longs,
    starts: Longs,
) -> bool:
    """Find the windows in a log that is tiles up to `until`; True when one reaches the tiles."""
    base, head, columns = slots[s, BASE], slots[s, HEAD], plan[COLUMNS]
    time = arena[base + row * columns]
    tiled = False
    edge = last_at_or_before(arena, base, columns, head, row, until)
    oldest = last_at_or_before(arena, base, columns, head, row, tile_start(cut, plan[TILE]))
    for b in range(len(bounds)):
        window, delay = bounds[b, 0], bounds[b, 1]
        end = time - delay
        start = max(end - window, cut)
        if start < until:
            if bounds[b, 2] == 1:
                start = tile_start(start, plan[TILE])
                if end < until and delay > 0:
                    end = max(start, tile_start(end, plan[TILE]))
            else:
                start = until
            if oldest < edge:
                tiled = True
        high = row
        if delay > 0:
            high = last_at_or_before(arena, base, columns, head, row, end)
        highs[b] = high
        starts[b] = start
        lows[b] = last_at_or_before(arena, base, columns, head, high, start)
    return tiled


@inlined
def evaluate_row(
    arena: Longs,
    floats: Floats,
    slots: Longs,
    meta: Longs,
    plan: Longs,
    edges: Longs,
    bounds: Longs,
    features: Longs,
    feature_numbers: Floats,
    s: int,
    row: int,
    cut: int,
    places: Longs,
    lows: Longs,
    highs: Longs,
    starts: Longs,
    out: Floats,
) -> bool:
    """Write every feature of the row; True when a window was rounded to tiles or cut by them."""
    base, columns = slots[s, BASE], plan[COLUMNS]
    time = arena[base + row * columns]
    until = tiled_until(arena, slots, s, plan, cut)
    tiled = False
    if until == NEVER:
        _find_windows(arena, slots, plan, edges, bounds, s, row, cut, places, lows, highs, starts)
    else:
        tiled = _find_tiled_windows(
            arena, slots, plan, bounds, s, row, cut, until, lows, highs, starts
        )
    for k in range(len(features)):
        op, b = features[k, 0], features[k, 1]
        low, high, start = lows[b], highs[b], starts[b]
        first = base + features[k, 2]
        second = base + features[k, 3]
        bottom = low * columns
        top = high * columns
        here = row * columns
        result = feature_numbers[k, 0]
        divisor = feature_numbers[k, 2]
        if op == OP_COUNT:
            n = high - low
            if features[k, 2] >= 0:
                n = arena[first + top] - arena[first + bottom]
            result = float(n)
        elif op == OP_SUM:
            result = float(arena[first + top] - arena[first + bottom]) / divisor
        elif op == OP_MEAN:
            n = arena[second + top] - arena[second + bottom]
            if n > 0:
                result = float(arena[first + top] - arena[first + bottom]) / (float(n) * divisor)
        elif op == OP_RATIO:
            n = high - low
            if features[k, 3] >= 0:
                n = arena[second + top] - arena[second + bottom]
            if n > 0:
                result = float(arena[first + top] - arena[first + bottom]) / float(n)
        elif op in (OP_MIN, OP_MAX):
            found = False
            best = 0
            for j in range(bottom + columns, top + 1, columns):
                if arena[second + j] != arena[second + j - columns]:
                    v = arena[first + j] - arena[first + j - columns]
                    if not found or (v < best if op == OP_MIN else v > best):
                        best = v
                        found = True
            if found:
                result = float(best) / divisor
        elif op in (OP_STD, OP_ZSCORE):
            n = arena[second + top] - arena[second + bottom]
            present = op == OP_STD or arena[second + here] != arena[second + here - columns]
            if n >= 2 and present:
                third = base + features[k, 4]
                sum_ = arena[first + top] - arena[first + bottom]
                squares = arena[third + top] - arena[third + bottom]
                numerator = std_numerator(
                    arena, first, second, columns, low, high, n, sum_, squares, meta[LARGEST]
                )
                deviation = math.sqrt(max(0.0, numerator) / float(n - 1))
                if op == OP_STD:
                    result = deviation / divisor
                elif deviation > 0.0:
                    v = float(arena[first + here] - arena[first + here - columns])
                    result = (v - float(sum_) / float(n)) / deviation
        elif op == OP_DISTINCT:
            n = 0
            for j in range(bottom + columns, top + 1, columns):
                if arena[first + j] != 0 and arena[second + j] <= start:
                    n += 1
            result = float(n)
        elif op == OP_LAST:
            stop = top if bounds[b, 1] > 0 else top - columns
            for j in range(stop, bottom, -columns):
                if arena[second + j] != arena[second + j - columns]:
                    result = float(arena[first + j] - arena[first + j - columns]) / divisor
                    break
        elif op == OP_SINCE_LAST:
            if high - 1 > low:
                result = float(time - arena[base + top - columns]) / 1000.0
        elif op == OP_SINCE_FIRST:
            result = float(time - arena[base + bottom + columns]) / 1000.0
        elif op == OP_CHANGE:
            if arena[second + here] != arena[second + here - columns]:
                for j in range(bottom + columns, top, columns):
                    if arena[second + j] != arena[second + j - columns]:
                        elapsed = time - arena[base + j]
                        if elapsed > 0:
                            v = arena[first + here] - arena[first + here - columns]
                            w = arena[first + j] - arena[first + j - columns]
                            result = float(v - w) / divisor / (float(elapsed) / 1000.0)
                        break
        elif op in (OP_DECAYED_COUNT, OP_DECAYED_SUM):
            sum_f = 0.0
            for j in range(top, bottom, -columns):
                weight = 2.0 ** (-float(time - arena[base + j]) / feature_numbers[k, 1])
                if op == OP_DECAYED_SUM:
                    weight *= float(arena[first + j] - arena[first + j - columns])
                sum_f += weight
            result = sum_f / divisor
        elif op == OP_FIRST_SEEN_KEY:
            result = 1.0 if high - 1 == low else 0.0
        elif op == OP_FIRST_SEEN_VALUE:
            if arena[first + here] != 0:
                result = 0.0 if arena[second + here] > start else 1.0
        elif op in (OP_DISTANCE, OP_SPEED):
            latitudes = base + plan[LATITUDE]
            longitudes = base + plan[LONGITUDE]
            if not (math.isnan(floats[latitudes + here]) or math.isnan(floats[longitudes + here])):
                for j in range(here - columns, bottom, -columns):
                    if math.isnan(floats[latitudes + j]) or math.isnan(floats[longitudes + j]):
                        continue
                    result = kilometres(
                        floats[latitudes + j],
                        floats[longitudes + j],
                        floats[latitudes + here],
                        floats[longitudes + here],
                    )
                    if op == OP_SPEED:
                        elapsed = max(1000, time - arena[base + j])
                        result /= float(elapsed) / 3_600_000.0
                    break
        out[k] = result
    return tiled
