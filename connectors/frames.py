"""Frames: what crosses between the Java bridge and Python, and back.

The layout (frame version 1, packets) is in `docs/architecture.md`; `connectors/bridge` is the
other implementation and `tests/contract/vectors/frames.json` holds both to it. A batch of n frames
becomes columns of length n in Kafka order, without copying: every `StringColumn` points into the
bytes that arrived.

    >>> batch = FrameBatch.parse(write_frame("payments", b"customer-1", b"..."))
    >>> len(batch), batch.key.bytes_at(0), batch.timestamp_ms[0]
    (1, b'customer-1', np.int64(-1))
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from connectors import _frame_kernels as kernels
from schemas.columns import StringColumn, readonly
from schemas.errors import FatalError

__all__ = [
    "CONTROL",
    "EVENT_TIME_HEADER",
    "FrameBatch",
    "FrameError",
    "FrameRecord",
    "Headers",
    "attachments_matrix",
    "event_time_header",
    "kafka_packet",
    "route_frames",
    "rows_packet",
    "shard_of",
    "topic_index",
    "warm",
    "write_frame",
]

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]
"""Kafka headers in their order; a name may repeat, a value may be null."""

CONTROL: Final = 4
"""Flag of a control record, of which every shard gets a copy."""

EVENT_TIME_HEADER: Final = "event_time_ms"
"""Header by which the source keeps partitions aligned in event time."""

_KEY_IS_NULL: Final = 1
_VALUE_IS_NULL: Final = 2
_FRAME: Final = struct.Struct("<IBBHiIqqqIIII")
_PACKET: Final = struct.Struct("<BBHII")
_TO_STAGE, _TO_KAFKA, _TO_ROWS = 0, 1, 2
_MAX_U16: Final = 0xFFFF

_SCRATCH_BYTES: Final = 512 * 1024
_MAX_SCRATCH_BYTES: Final = 8 * 1024 * 1024
"""What a thread keeps: many times a usual batch; one oversized record does not stay for good."""
_thread: Final = threading.local()
_PROBLEMS: Final = {
    1: "fewer than 56 bytes are left, expected a whole frame",
    2: "its length is out of range, expected 56 to the bytes left",
    3: "its version is not 1; the bridge jar and the Python packages must come from one release",
    4: "its flags or reserved bytes are unknown, expected flags up to 7 and reserved 0",
    5: "its sections do not add up to its length",
    6: "its key or value is null but has bytes",
}
_NONE64: Final = np.empty(0, np.int64)
_NONE32: Final = np.empty(0, np.int32)
_NONE8: Final = np.empty(0, np.uint8)
for _none in (_NONE64, _NONE32, _NONE8):
    _none.flags.writeable = False


class FrameError(FatalError):
    """Bytes between our own operators do not have the agreed layout: a bug or mixed releases."""


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One record on its own, for the rare paths: dead letters, control records, tools."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    ingested_at_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    control: bool


class FrameBatch:
    """The frames of one batch as columns, in the order in which they arrived.

    Arrays are read-only: they share memory with each other and with the bytes parsed.

    * `partition` int32, `offset` int64: Kafka coordinates (-1 in frames not read from Kafka);
    * `timestamp_ms` int64: Kafka's timestamp, -1 when absent;
    * `ingest_ms` int64: when the JVM read the record;
    * `flags` int32: `CONTROL` and the null flags; `control` bool: where it is a control record;
    * `topic`, `key`, `headers`, `value`, `attachment`: `StringColumn` over `data`, -1 where null.
    """

    __slots__ = ("_narrow", "_wide", "data")

    def __init__(
        self,  # use `parse`
        data: NDArray[np.uint8],
        wide: NDArray[np.int64],
        narrow: NDArray[np.int32],
    ) -> None:
        self.data = data
        self._wide = wide
        self._narrow = narrow

    @staticmethod
    def parse(buffer: bytes | bytearray | memoryview) -> FrameBatch:
        """Index the frames of `buffer`, which must not change afterwards; empty gives no frames.

        Raises:
            FrameError: where the bytes are cut short or not frames; nothing is returned in part.
        """
        data = np.frombuffer(buffer, np.uint8)
        data.flags.writeable = False
        wide, narrow, error, at = kernels.scan(data)
        if error:
            msg = f"Parsing {len(data)} bytes of frames: at byte {at}, {_PROBLEMS[error]}"
            raise FrameError(msg)
        wide.flags.writeable = False
        narrow.flags.writeable = False
        return FrameBatch(data, wide, narrow)

    def __len__(self) -> int:
        return int(self._wide.shape[1])

    @property
    def partition(self) -> NDArray[np.int32]:
        """Return Kafka partitions."""
        return self._narrow_row(kernels.PARTITION)

    @property
    def offset(self) -> NDArray[np.int64]:
        """Return Kafka offsets."""
        return self._wide_row(kernels.OFFSET)

    @property
    def timestamp_ms(self) -> NDArray[np.int64]:
        """Return Kafka timestamps, -1 where absent."""
        return self._wide_row(kernels.TIMESTAMP)

    @property
    def ingest_ms(self) -> NDArray[np.int64]:
        """Return when the JVM read each record."""
        return self._wide_row(kernels.INGESTED)

    @property
    def flags(self) -> NDArray[np.int32]:
        """Return the flags of each frame."""
        return self._narrow_row(kernels.FLAGS)

    @property
    def control(self) -> NDArray[np.bool_]:
        """Return where frames are control records."""
        control: NDArray[np.bool_] = (self.flags & CONTROL) != 0
        return control

    @property
    def topic(self) -> StringColumn:
        """Return topic names."""
        return self._column(kernels.TOPIC_START, kernels.TOPIC_LENGTH)

    @property
    def key(self) -> StringColumn:
        """Return message keys, -1 where null."""
        return self._column(kernels.KEY_START, kernels.KEY_LENGTH)

    @property
    def headers(self) -> StringColumn:
        """Return packed headers sections; length 0 means none."""
        return self._column(kernels.HEADERS_START, kernels.HEADERS_LENGTH)

    @property
    def value(self) -> StringColumn:
        """Return message values, -1 where null."""
        return self._column(kernels.VALUE_START, kernels.VALUE_LENGTH)

    @property
    def attachment(self) -> StringColumn:
        """Return what an earlier stage computed; length 0 means nothing."""
        return self._column(kernels.ATTACHMENT_START, kernels.ATTACHMENT_LENGTH)

    def _wide_row(self, row: int) -> NDArray[np.int64]:
        values: NDArray[np.int64] = self._wide[row]
        return values

    def _narrow_row(self, row: int) -> NDArray[np.int32]:
        values: NDArray[np.int32] = self._narrow[row]
        return values

    def _column(self, start: int, length: int) -> StringColumn:
        return StringColumn(self.data, self._wide_row(start), self._narrow_row(length))

    def frame_at(self, index: int) -> bytes:
        """Return one whole frame, as it came."""
        start = int(self._wide[kernels.FRAME_START, index])
        return self.data[start : start + int(self._narrow[kernels.FRAME_LENGTH, index])].tobytes()

    def headers_at(self, index: int) -> tuple[tuple[str, bytes | None], ...]:
        """Return the headers of one record in their order.

        Raises:
            FrameError: when the section is not what the bridge writes.
        """
        return _unpack_headers(self.headers.bytes_at(index) or b"")

    def record_at(self, index: int) -> FrameRecord:
        """Return one record as Python objects (rare paths only); a bad topic name is escaped."""
        return FrameRecord(
            topic=(self.topic.bytes_at(index) or b"").decode("utf-8", "backslashreplace"),
            partition=int(self.partition[index]),
            offset=int(self.offset[index]),
            timestamp_ms=int(self.timestamp_ms[index]),
            ingested_at_ms=int(self.ingest_ms[index]),
            key=self.key.bytes_at(index),
            value=self.value.bytes_at(index),
            headers=self.headers_at(index),
            control=bool(self.flags[index] & CONTROL),
        )

    def route(
        self,
        shards: NDArray[np.int32],
        shard_count: int,
        keep: NDArray[np.bool_],
        attachments: NDArray[np.float64] | None,
    ) -> bytes:
        """Write packets of route 0; `route_frames` checks and completes the arguments."""
        width = -1 if attachments is None else attachments.shape[1]
        flat = _NONE8 if attachments is None else readonly(attachments.reshape(-1).view(np.uint8))
        room = len(self.data) + len(flat) + _PACKET.size * shard_count
        out = _scratch(room)
        written, bad = kernels.route(
            self.data,
            self._wide,
            self._narrow,
            readonly(keep),
            readonly(shards),
            shard_count,
            flat,
            width,
            out,
        )
        if bad >= 0:
            msg = (
                f"Routing frame {bad} of {len(self)}: shard was {int(shards[bad])}, "
                f"expected 0 to {shard_count - 1}"
            )
            raise FrameError(msg)
        return out[:written].tobytes()


def topic_index(batch: FrameBatch, topics: Sequence[bytes]) -> NDArray[np.int16]:
    """Return which of `topics` (UTF-8) each frame has: int16 of length n, -1 for none of them."""
    names, bounds = _topic_table(tuple(topics))
    out = np.empty(len(batch), np.int16)
    column = batch.topic
    kernels.index_topics(batch.data, column.starts, column.lengths, names, bounds, out)
    return out


def shard_of(
    keys: StringColumn, shards: int, source: FrameBatch | None = None
) -> NDArray[np.int32]:
    """Return the shard of each key, int32 from 0 to `shards - 1`, equal to the bridge's.

    FNV-1a 32 over the key bytes, folded (`h ^= h >>> 15`), floor modulo. A null key goes by the
    topic and partition of the same row of `source`; without `source` it goes where the empty key
    goes.
    """
    out = np.empty(len(keys), np.int32)
    if source is None:
        topics, topic_starts, topic_lengths, partitions = _NONE8, _NONE64, _NONE32, _NONE32
    else:
        topic = source.topic
        topics, topic_starts, topic_lengths = topic.data, topic.starts, topic.lengths
        partitions = source.partition
    kernels.shards_of(
        readonly(keys.data),
        readonly(keys.starts),
        readonly(keys.lengths),
        topics,
        topic_starts,
        topic_lengths,
        partitions,
        shards,
        out,
    )
    return out


def route_frames(
    batch: FrameBatch,
    shards: NDArray[np.int32],
    shard_count: int,
    keep: NDArray[np.bool_] | None = None,
    attachments: NDArray[np.float64] | None = None,
) -> bytes:
    """Return packets that send frames on to the next keyed stage, one packet per shard present.

    Frames keep their order within a shard. Control frames go to the shard in `shards` like any
    other and keep their attachment: give them the number of the sending shard, and every shard of
    the next stage gets one copy when both stages have as many shards.

    Args:
        batch: the frames.
        shards: int32 of length n, the next shard of each frame; ignored where `keep` is False.
        shard_count: how many shards the next stage has.
        keep: bool of length n; None sends all. No frame kept gives empty bytes.
        attachments: float64 (n, k) that replace the attachments, row i those of frame i; None keeps
            those the frames came with.

    Raises:
        FrameError: when a shard is out of range or a length is not n.
    """
    count = len(batch)
    if keep is None:
        keep = np.ones(count, np.bool_)
    rows = count if attachments is None else len(attachments)
    if not len(keep) == len(shards) == rows == count:
        msg = (
            f"Routing {count} frames: there were {len(shards)} shards, {len(keep)} marks and "
            f"{rows} rows of attachments, expected as many as frames"
        )
        raise FrameError(msg)
    if attachments is not None:
        attachments = np.ascontiguousarray(attachments, np.float64)
    return batch.route(
        np.ascontiguousarray(shards, np.int32),
        shard_count,
        np.ascontiguousarray(keep, np.bool_),
        attachments,
    )


def attachments_matrix(batch: FrameBatch, width: int) -> NDArray[np.float64]:
    """Return attachments as float64 (n, width); a frame without one gives a row of NaN.

    Raises:
        FrameError: when an attachment has another width.
    """
    out = np.full((len(batch), width), np.nan)
    column = batch.attachment
    bad = kernels.copy_attachments(
        batch.data, column.starts, column.lengths, width, out.reshape(-1).view(np.uint8)
    )
    if bad >= 0:
        msg = (
            f"Reading the attachment of frame {bad} of {len(batch)}: it had "
            f"{int(column.lengths[bad])} bytes, expected {8 * width}, {width} float64"
        )
        raise FrameError(msg)
    return out


def write_frame(
    topic: str,
    key: bytes | None,
    value: bytes | None,
    *,
    headers: Headers = (),
    partition: int = -1,
    offset: int = -1,
    timestamp_ms: int = -1,
    ingested_at_ms: int = -1,
    control: bool = False,
    attachment: bytes = b"",
) -> bytes:
    """Return one frame (alerts, dead letters, tests); a timestamp of -1 means the producer's clock.

    Raises:
        FrameError: when the topic, a header's name or the number of headers exceeds 65,535.
    """
    name = topic.encode("utf-8")
    packed = _pack_headers(headers)
    if len(name) > _MAX_U16:
        msg = f"Writing a frame: the topic had {len(name)} bytes, expected at most {_MAX_U16}"
        raise FrameError(msg)
    key_bytes, value_bytes = key or b"", value or b""
    flags = (
        (_KEY_IS_NULL if key is None else 0)
        | (_VALUE_IS_NULL if value is None else 0)
        | (CONTROL if control else 0)
    )
    body = b"".join((name, key_bytes, packed, value_bytes, attachment))
    return (
        _FRAME.pack(
            _FRAME.size + len(body),
            1,
            flags,
            len(name),
            partition,
            len(attachment),
            offset,
            timestamp_ms,
            ingested_at_ms,
            len(key_bytes),
            len(packed),
            len(value_bytes),
            0,
        )
        + body
    )


def kafka_packet(frames: Iterable[bytes]) -> bytes:
    """Return the packet (route 1) that makes each frame a Kafka record; no frames, no bytes."""
    payload = b"".join(frames)
    return _PACKET.pack(_TO_KAFKA, 0, 0, 0, len(payload)) + payload if payload else b""


def rows_packet(count: int, rows: bytes, shard: int = 0) -> bytes:
    """Return the packet (route 2) of `count` rows for the row writer; no rows, no bytes.

    The payload is `count` as u32 and then `rows`, opaque to the bridge, which adds counts up and
    joins rows until an insert is worth its cost.
    """
    if count == 0:
        return b""
    return _PACKET.pack(_TO_ROWS, 0, 0, shard, 4 + len(rows)) + struct.pack("<I", count) + rows


def event_time_header(event_time_ms: int) -> tuple[str, bytes]:
    r"""Return the header by which the source aligns partitions: eight bytes, little-endian.

    >>> event_time_header(1)
    ('event_time_ms', b'\x01\x00\x00\x00\x00\x00\x00\x00')
    """
    return EVENT_TIME_HEADER, struct.pack("<q", event_time_ms)


def warm() -> None:
    """Compile every kernel, or load it from numba's cache; call it once before the first batch."""
    batch = FrameBatch.parse(write_frame("t", b"k", b"v", attachment=bytes(8)))
    topic_index(batch, [b"t"])
    shards = shard_of(batch.key, 1, batch)
    shard_of(batch.key, 1)
    route_frames(batch, shards, 1)
    route_frames(batch, shards, 1, attachments=attachments_matrix(batch, 1))


@lru_cache(maxsize=64)
def _topic_table(topics: tuple[bytes, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the names joined and where each begins; a job asks for the same few every batch."""
    names = np.frombuffer(b"".join(topics), np.uint8)
    bounds = np.cumsum([0, *map(len, topics)], dtype=np.int64)
    bounds.flags.writeable = False
    return names, bounds


def _scratch(size: int) -> NDArray[np.uint8]:
    """Return at least `size` writable bytes, the same again for the next call of this thread.

    A fresh megabyte costs 250 page faults, many times what is written into it: 1.8 ms against 0.1.
    """
    held: NDArray[np.uint8] | None = getattr(_thread, "scratch", None)
    if held is None or len(held) < size:
        held = np.empty(max(size, _SCRATCH_BYTES), np.uint8)
        if size <= _MAX_SCRATCH_BYTES:
            _thread.scratch = held
    return held


def _pack_headers(headers: Headers) -> bytes:
    if not headers:
        return b""
    if len(headers) > _MAX_U16:
        msg = f"Writing a frame: it had {len(headers)} headers, expected at most {_MAX_U16}"
        raise FrameError(msg)
    parts = [struct.pack("<H", len(headers))]
    for name, value in headers:
        raw = name.encode("utf-8")
        if len(raw) > _MAX_U16:
            msg = f"Writing a frame: a header's name had {len(raw)} bytes, expected {_MAX_U16}"
            raise FrameError(msg)
        parts += [
            struct.pack("<H", len(raw)),
            raw,
            struct.pack("<i", -1 if value is None else len(value)),
            value or b"",
        ]
    return b"".join(parts)


def _unpack_headers(section: bytes) -> tuple[tuple[str, bytes | None], ...]:
    if not section:
        return ()
    headers: list[tuple[str, bytes | None]] = []
    try:
        (count,) = struct.unpack_from("<H", section, 0)
        at = 2
        for _ in range(count):
            (size,) = struct.unpack_from("<H", section, at)
            name = section[at + 2 : at + 2 + size].decode("utf-8", "backslashreplace")
            at += 2 + size
            (length,) = struct.unpack_from("<i", section, at)
            at += 4
            if length < -1 or at + length > len(section):
                msg = f"Reading header {name!r}: its value's length was {length}, out of range"
                raise FrameError(msg)
            headers.append((name, None if length < 0 else section[at : at + length]))
            at += max(length, 0)
    except struct.error as e:
        msg = f"Reading {len(section)} bytes of headers: they end early"
        raise FrameError(msg) from e
    return tuple(headers)
