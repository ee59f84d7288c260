"""Build and join `StringColumn`s for producers without a Python object per record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import StringColumn

__all__ = ["concatenate", "from_arrow", "repeat", "to_bytes"]


def from_arrow(array: pa.Array | pa.ChunkedArray) -> StringColumn:
    """Return an Arrow array as UTF-8 text; numbers are written in decimal, nulls stay null.

    Text is shared with the Arrow buffers, not copied.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps zero chunks as chunked
            array = pa.array([], array.type)
    text = pc.cast(array, pa.large_string())
    n = len(text)
    if n == 0:
        return StringColumn(np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int32))
    _, offsets_buffer, data_buffer = text.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[text.offset : text.offset + n + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.zeros(0, np.uint8)
    lengths = np.diff(offsets).astype(np.int32)
    if text.null_count:
        lengths[np.asarray(pc.is_null(text))] = -1
    return StringColumn(data, offsets[:-1].copy(), lengths)


def concatenate(columns: Sequence[StringColumn]) -> StringColumn:
    """Join columns end to end; the bytes are copied."""
    if len(columns) == 1:
        return columns[0]
    bases = np.cumsum([0] + [len(column.data) for column in columns])
    return StringColumn(
        np.concatenate([column.data for column in columns]),
        np.concatenate([c.starts + base for c, base in zip(columns, bases, strict=False)]),
        np.concatenate([column.lengths for column in columns]),
    )


def repeat(text: str, count: int) -> StringColumn:
    """Return a column that holds `text` in every row, stored once."""
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    return StringColumn(data, np.zeros(count, np.int64), np.full(count, len(data), np.int32))


def to_bytes(column: StringColumn) -> list[bytes | None]:
    """Return the rows as bytes objects, which is what a Kafka client takes; null is None."""
    raw = column.data.tobytes()
    starts = column.starts.tolist()
    ends = (column.starts + column.lengths).tolist()
    if len(column) and int(column.lengths.min()) < 0:
        lengths = column.lengths.tolist()
        return [
            None if length < 0 else raw[start:end]
            for start, end, length in zip(starts, ends, lengths, strict=True)
        ]
    return [raw[start:end] for start, end in zip(starts, ends, strict=True)]
