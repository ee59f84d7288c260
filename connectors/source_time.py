"""When a record entered the stream: the time that its source is aligned by, read from its frame."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from connectors.frames import EVENT_TIME_HEADER, FrameBatch, write_frame

__all__ = ["source_time_ms", "warm"]

_NAME = np.frombuffer(EVENT_TIME_HEADER.encode(), np.uint8)


def source_time_ms(batch: FrameBatch) -> NDArray[np.int64]:
    """Return header `event_time_ms` where a frame has one of 8 bytes, else its Kafka timestamp.

    The same rule as the bridge's `FrameEventTime`; -1 where there is neither.
    """
    headers = batch.headers
    return _source_time(
        batch.data, headers.starts, headers.lengths, np.ascontiguousarray(batch.timestamp_ms), _NAME
    )


@njit(cache=True, nogil=True)
def _source_time(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    timestamps: NDArray[np.int64],
    wanted: NDArray[np.uint8],
) -> NDArray[np.int64]:
    rows = len(starts)
    times = timestamps.copy()
    for row in range(rows):
        if lengths[row] < 2:
            continue
        at = starts[row]
        end = at + lengths[row]
        count = int(data[at]) | int(data[at + 1]) << 8
        at += 2
        for _ in range(count):
            if at + 2 > end:
                break
            name_length = int(data[at]) | int(data[at + 1]) << 8
            name = at + 2
            at = name + name_length
            if at + 4 > end:
                break
            value_length = (
                int(data[at])
                | int(data[at + 1]) << 8
                | int(data[at + 2]) << 16
                | int(data[at + 3]) << 24
            )
            at += 4
            if value_length >= 1 << 31:
                continue  # -1: null
            if at + value_length > end:
                break
            if value_length == 8 and name_length == len(wanted):
                same = True
                for index in range(name_length):
                    if data[name + index] != wanted[index]:
                        same = False
                        break
                if same:
                    value = np.uint64(0)
                    for index in range(8):
                        value |= np.uint64(data[at + index]) << np.uint64(8 * index)
                    times[row] = np.int64(value)
                    break
            at += value_length
    return times


def warm() -> None:
    """Compile the kernel, so that the first batch does not wait for it."""
    source_time_ms(FrameBatch.parse(write_frame("t", b"k", b"v")))
