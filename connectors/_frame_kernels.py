"""Compiled loops over frames; `connectors/frames.py` is their only caller.

All take read-only C-contiguous arrays of fixed types, so that each compiles once. None allocates
per frame. Annotations name the machine types that numba sees.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numba import njit, types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "ATTACHMENT_LENGTH",
    "ATTACHMENT_START",
    "FLAGS",
    "FRAME_LENGTH",
    "FRAME_START",
    "HEADERS_LENGTH",
    "HEADERS_START",
    "INGESTED",
    "KEY_LENGTH",
    "KEY_START",
    "OFFSET",
    "PARTITION",
    "TIMESTAMP",
    "TOPIC_LENGTH",
    "TOPIC_START",
    "VALUE_LENGTH",
    "VALUE_START",
    "copy_attachments",
    "index_topics",
    "route",
    "scan",
    "shards_of",
]

cgutils: Any = _cgutils
Bytes: TypeAlias = NDArray[np.uint8]
Ints: TypeAlias = NDArray[np.int32]
Longs: TypeAlias = NDArray[np.int64]

HEADER_BYTES: Final = 56
PACKET_HEADER_BYTES: Final = 12

# Rows of the int64 table of a scan: where things are, and the 64-bit fields.
FRAME_START: Final = 0
OFFSET: Final = 1
TIMESTAMP: Final = 2
INGESTED: Final = 3
TOPIC_START: Final = 4
KEY_START: Final = 5
HEADERS_START: Final = 6
VALUE_START: Final = 7
ATTACHMENT_START: Final = 8
WIDE_ROWS: Final = 9

# Rows of the int32 table of a scan: lengths (-1 where null), and the 32-bit fields.
FRAME_LENGTH: Final = 0
PARTITION: Final = 1
FLAGS: Final = 2
TOPIC_LENGTH: Final = 3
KEY_LENGTH: Final = 4
HEADERS_LENGTH: Final = 5
VALUE_LENGTH: Final = 6
ATTACHMENT_LENGTH: Final = 7
NARROW_ROWS: Final = 8


@njit(cache=True, nogil=True)
def _u16(data: Bytes, at: int) -> int:
    return int(np.int64(data[at]) | (np.int64(data[at + 1]) << 8))


@njit(cache=True, nogil=True)
def _u32(data: Bytes, at: int) -> int:
    return int(
        np.int64(data[at])
        | (np.int64(data[at + 1]) << 8)
        | (np.int64(data[at + 2]) << 16)
        | (np.int64(data[at + 3]) << 24)
    )


@njit(cache=True, nogil=True)
def _i64(data: Bytes, at: int) -> int:
    return _u32(data, at) | (_u32(data, at + 4) << 32)


@njit(cache=True, nogil=True)
def _put32(data: Bytes, at: int, value: int) -> None:
    data[at] = np.uint8(value & 0xFF)
    data[at + 1] = np.uint8((value >> 8) & 0xFF)
    data[at + 2] = np.uint8((value >> 16) & 0xFF)
    data[at + 3] = np.uint8((value >> 24) & 0xFF)


def _copy_bytes(
    typing_context: Any,
    target: Any,
    to: Any,
    source: Any,
    start: Any,
    count: Any,
) -> Any:
    """Copy `count` bytes between uint8 arrays: a memcpy, several times faster than a loop."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        into = cgutils.create_struct_proxy(signature.args[0])(context, builder, values[0])
        out_of = cgutils.create_struct_proxy(signature.args[2])(context, builder, values[2])
        cgutils.raw_memcpy(
            builder,
            builder.gep(into.data, [values[1]]),
            builder.gep(out_of.data, [values[3]]),
            values[4],
            1,
        )
        return context.get_dummy_value()

    return types.none(target, types.int64, source, types.int64, types.int64), build


_copy: Any = intrinsic(_copy_bytes)


@njit(cache=True, nogil=True)
def scan(data: Bytes) -> tuple[Longs, Ints, int, int]:
    """Index every frame of a batch, or say where the first malformed one is.

    Returns `(wide, narrow, error, at)`: the two tables, and an error code that is 0 when all is
    well: 1 too short for a header, 2 length out of range, 3 version, 4 flags or reserved bytes,
    5 sections do not add up, 6 a null key or value has bytes.
    """
    total = len(data)
    count = 0
    at = 0
    error = 0
    while at < total and error == 0:
        if total - at < HEADER_BYTES:
            error = 1
            break
        length = _u32(data, at)
        if length < HEADER_BYTES or length > total - at:
            error = 2
            break
        count += 1
        at += length
    if error != 0:
        return np.empty((WIDE_ROWS, 0), np.int64), np.empty((NARROW_ROWS, 0), np.int32), error, at

    wide = np.empty((WIDE_ROWS, count), np.int64)
    narrow = np.empty((NARROW_ROWS, count), np.int32)
    at = 0
    for i in range(count):
        length = _u32(data, at)
        flags = np.int64(data[at + 5])
        topic = _u16(data, at + 6)
        attachment = _u32(data, at + 12)
        key = _u32(data, at + 40)
        headers = _u32(data, at + 44)
        value = _u32(data, at + 48)
        if data[at + 4] != 1:
            error = 3
        elif flags > 7 or _u32(data, at + 52) != 0:
            error = 4
        elif HEADER_BYTES + topic + key + headers + value + attachment != length:
            error = 5
        elif (flags & 1 != 0 and key != 0) or (flags & 2 != 0 and value != 0):
            error = 6
        if error != 0:
            return wide, narrow, error, at
        wide[FRAME_START, i] = at
        wide[OFFSET, i] = _i64(data, at + 16)
        wide[TIMESTAMP, i] = _i64(data, at + 24)
        wide[INGESTED, i] = _i64(data, at + 32)
        section = at + HEADER_BYTES
        wide[TOPIC_START, i] = section
        section += topic
        wide[KEY_START, i] = section
        section += key
        wide[HEADERS_START, i] = section
        section += headers
        wide[VALUE_START, i] = section
        section += value
        wide[ATTACHMENT_START, i] = section
        narrow[FRAME_LENGTH, i] = length
        narrow[PARTITION, i] = np.int32(_u32(data, at + 8))
        narrow[FLAGS, i] = flags
        narrow[TOPIC_LENGTH, i] = topic
        narrow[KEY_LENGTH, i] = -1 if flags & 1 != 0 else key
        narrow[HEADERS_LENGTH, i] = headers
        narrow[VALUE_LENGTH, i] = -1 if flags & 2 != 0 else value
        narrow[ATTACHMENT_LENGTH, i] = attachment
        at += length
    return wide, narrow, error, at


@njit(cache=True, nogil=True)
def index_topics(
    data: Bytes, starts: Longs, lengths: Ints, names: Bytes, bounds: Longs, out: NDArray[np.int16]
) -> None:
    """Write which of the topics `names[bounds[j]:bounds[j + 1]]` each frame has, or -1."""
    last = -1
    for i in range(len(starts)):
        # Frames of one topic come in runs: try the last answer first.
        found = -1
        for step in range(-1, len(bounds) - 1):
            j = last if step < 0 else step
            if j < 0 or bounds[j + 1] - bounds[j] != lengths[i]:
                continue
            same = True
            for b in range(lengths[i]):
                if data[starts[i] + b] != names[bounds[j] + b]:
                    same = False
                    break
            if same:
                found = j
                break
        out[i] = found
        last = found


@njit(cache=True, nogil=True)
def shards_of(
    data: Bytes,
    starts: Longs,
    lengths: Ints,
    topics: Bytes,
    topic_starts: Longs,
    topic_lengths: Ints,
    partitions: Ints,
    shards: int,
    out: Ints,
) -> None:
    """Write the shard of each key; where a key is null, that of its topic and partition."""
    prime = np.uint32(0x01000193)
    for i in range(len(starts)):
        h = np.uint32(0x811C9DC5)
        if lengths[i] >= 0:
            for b in range(starts[i], starts[i] + lengths[i]):
                h = np.uint32((h ^ np.uint32(data[b])) * prime)
        elif len(topic_starts) > 0:
            for b in range(topic_starts[i], topic_starts[i] + topic_lengths[i]):
                h = np.uint32((h ^ np.uint32(topics[b])) * prime)
            p = np.uint32(partitions[i])
            for b in range(4):
                h = np.uint32((h ^ ((p >> np.uint32(8 * b)) & np.uint32(0xFF))) * prime)
        h = np.uint32(h ^ (h >> np.uint32(15)))
        # Java's floorMod of a signed int.
        out[i] = np.int64(np.int32(h)) % shards


@njit(cache=True, nogil=True)
def copy_attachments(data: Bytes, starts: Longs, lengths: Ints, width: int, out: Bytes) -> int:
    """Copy attachments of `8 * width` bytes into rows of `out`, bytes of a float64 matrix.

    A row without attachment is left alone. Returns the first row of another length, or -1.
    """
    size = 8 * width
    for i in range(len(starts)):
        if lengths[i] == 0:
            continue
        if lengths[i] != size:
            return i
        _copy(out, i * size, data, starts[i], size)
    return -1


@njit(cache=True, nogil=True)
def route(
    data: Bytes,
    wide: Longs,
    narrow: Ints,
    keep: NDArray[np.bool_],
    shard: Ints,
    shards: int,
    attachments: Bytes,
    width: int,
    out: Bytes,
) -> tuple[int, int]:
    """Write one packet of route 0 per shard that has a kept frame, frames in order.

    `attachments` are the bytes of a float64 matrix of `width` columns; a width of -1 keeps those of
    the frames. Control frames always keep theirs. `out` has room for everything. Returns how
    many of its bytes were written, and the first row whose shard is out of range, or -1.
    """
    count = len(keep)
    fresh = 8 * width
    sizes = np.zeros(shards, np.int64)
    for i in range(count):
        if not keep[i]:
            continue
        s = shard[i]
        if s < 0 or s >= shards:
            return 0, i
        size = np.int64(narrow[FRAME_LENGTH, i])
        if width >= 0 and narrow[FLAGS, i] & 4 == 0:
            size += fresh - narrow[ATTACHMENT_LENGTH, i]
        sizes[s] += size
    cursor = np.empty(shards, np.int64)
    at = 0
    for s in range(shards):
        if sizes[s] > 0:
            _put32(out, at, 0)
            _put32(out, at + 4, s)
            _put32(out, at + 8, sizes[s])
            cursor[s] = at + PACKET_HEADER_BYTES
            at += PACKET_HEADER_BYTES + sizes[s]
    for i in range(count):
        if not keep[i]:
            continue
        source = wide[FRAME_START, i]
        length = np.int64(narrow[FRAME_LENGTH, i])
        target = cursor[shard[i]]
        if width >= 0 and narrow[FLAGS, i] & 4 == 0:
            length -= narrow[ATTACHMENT_LENGTH, i]
            _copy(out, target, data, source, length)
            _put32(out, target, length + fresh)
            _put32(out, target + 12, fresh)
            target += length
            _copy(out, target, attachments, i * fresh, fresh)
            cursor[shard[i]] = target + fresh
        else:
            _copy(out, target, data, source, length)
            cursor[shard[i]] = target + length
    return at, -1
