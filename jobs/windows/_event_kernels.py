"""Compiled kernels for one event or label of a key: clocks, labels that wait, counting."""

from __future__ import annotations

from jobs.windows._compile import inlined, kernel
from jobs.windows._key_kernels import create_slot
from jobs.windows._layout import (
    BASE,
    CLOCK,
    COLUMNS,
    FREE_WAIT,
    HEAD,
    HORIZON,
    LAST,
    NEVER,
    NEWEST,
    STALE_LABEL,
    UNKNOWN_LABEL,
    WAITING,
    WAITS,
    Bytes,
    Floats,
    Longs,
)
from jobs.windows._log_kernels import (
    find_id,
    insert,
    last_at_or_before,
    set_label,
    tiled_until,
)

__all__ = ["add_event", "cut_of", "label_row", "restore_label"]


@kernel
def take_waiting(
    slots: Longs,
    waits: Longs,
    meta: Longs,
    plan: Longs,
    s: int,
    h: int,
    time: int,
    clock: int,
) -> int:
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
                return int(waits[at, 1])
        else:
            before = at
        at = following
    return 0


@kernel
def let_wait(
    slots: Longs,
    waits: Longs,
    meta: Longs,
    plan: Longs,
    s: int,
    h: int,
    label: int,
    time: int,
    accepted: bool,
) -> bool:
    """Keep a label until its event comes; False when a higher or equal revision waits already.

    One that was `accepted` before a restart replaces whatever waits.
    """
    at = slots[s, WAITING]
    while at != 0:
        if waits[at, 0] == h and waits[at, 2] > meta[CLOCK] - 2 * plan[HORIZON]:
            if not accepted and label >> 2 <= waits[at, 1] >> 2:
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


@inlined
def cut_of(slots: Longs, meta: Longs, plan: Longs, s: int, time: int) -> int:
    """Return the time up to which events of a key are out of sight once `time` is seen.

    A key's clock is its newest event, but never more than one horizon behind the shard's, so that
    keys that fell silent can be dropped. Only for events that far behind does sharding matter at
    all.
    """
    newest = slots[s, NEWEST] if s != 0 else NEVER
    behind = max(meta[CLOCK], time) - plan[HORIZON]
    return int(max(newest, time, behind) - plan[HORIZON])


@inlined
def labelled_row(slots: Longs, meta: Longs, arena: Longs, plan: Longs, s: int, h: int) -> int:
    """Return the row of the event that a label of this id is for; 0 when none is in sight."""
    seen = cut_of(slots, meta, plan, s, NEVER)
    seen = max(seen, tiled_until(arena, slots, s, plan, seen))
    return find_id(arena, slots, s, plan, h, seen, True)


@kernel
def label_row(
    slots: Longs,
    waits: Longs,
    table: Longs,
    key_bytes: Bytes,
    meta: Longs,
    arena: Longs,
    plan: Longs,
    raws: Longs,
    measures: Longs,
    filters: Longs,
    s: int,
    h: int,
    label: int,
    time: int,
    key_data: Bytes,
    key_start: int,
    key_length: int,
    key_hash: int,
) -> tuple[int, int]:
    """Apply a label, or let it wait for its event; return its flags, plus 256 when it counted.

    Also the time by which the label lives on: that of the event it was applied to, or else its own.
    """
    row = labelled_row(slots, meta, arena, plan, s, h) if s != 0 else 0
    if row != 0:
        if set_label(arena, slots, plan, raws, measures, filters, s, row, label):
            return 256, int(arena[slots[s, BASE] + row * plan[COLUMNS]])
        return STALE_LABEL, time
    if h == 0 or time <= meta[CLOCK] - 2 * plan[HORIZON]:
        return UNKNOWN_LABEL, time
    if s == 0:
        s = create_slot(table, slots, key_bytes, meta, key_data, key_start, key_length, key_hash)
    if let_wait(slots, waits, meta, plan, s, h, label, time, False):
        return UNKNOWN_LABEL | 256, time
    return UNKNOWN_LABEL | STALE_LABEL, time


@inlined
def restore_label(
    slots: Longs,
    waits: Longs,
    meta: Longs,
    arena: Longs,
    plan: Longs,
    raws: Longs,
    measures: Longs,
    filters: Longs,
    s: int,
    h: int,
    label: int,
    time: int,
) -> None:
    """Do again what a label did that `label_row` accepted before a restart.

    An event that left the log takes its labels' time with it: they wait here in vain, because that
    time is two horizons old by the end of the log.
    """
    row = labelled_row(slots, meta, arena, plan, s, h)
    if row != 0:
        set_label(arena, slots, plan, raws, measures, filters, s, row, label)
    else:
        let_wait(slots, waits, meta, plan, s, h, label, time, True)


@inlined
def add_event(
    arena: Longs,
    floats: Floats,
    slots: Longs,
    waits: Longs,
    meta: Longs,
    plan: Longs,
    raws: Longs,
    measures: Longs,
    filters: Longs,
    filter_operands: Floats,
    s: int,
    time: int,
    h: int,
    raw: Longs,
    bits: int,
    i: int,
    label: int,
    restored: bool,
) -> tuple[int, int]:
    """Insert an event where there is room for it; return its row, and the label that it bears.

    In the scratch log, slot 0, no clock moves and no label waits. An event that is `restored` bears
    the label that it took when it came, and takes no other.
    """
    row = slots[s, LAST] + 1
    if s != 0:
        newest = slots[s, NEWEST]
        if time < newest:
            head, last = slots[s, HEAD], slots[s, LAST]
            row = 1 + last_at_or_before(arena, slots[s, BASE], plan[COLUMNS], head, last, time)
        if slots[s, WAITING] != 0 and (label != 0 or not restored):
            clock = max(meta[CLOCK], time)
            waiting = take_waiting(slots, waits, meta, plan, s, h, time, clock)
            if label == 0:
                label = waiting
        slots[s, NEWEST] = max(newest, time)
        meta[CLOCK] = max(meta[CLOCK], time)
    insert(
        arena,
        floats,
        slots,
        meta,
        plan,
        raws,
        measures,
        filters,
        filter_operands,
        s,
        row,
        time,
        h,
        raw,
        bits,
        i,
        label,
    )
    return row, label
