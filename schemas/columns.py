"""Columns of one batch: the shape in which decoded events travel through the pure core.

A batch of n records is a mapping from field name to a column of length n, in Kafka order. Strings
are never materialised as Python objects on the hot path: a `StringColumn` points into the bytes
that arrived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

# Columns are not frozen: dozens are made in every batch, and a frozen one takes three times as long
# to make. Nobody assigns to one all the same.
__all__ = ["Column", "Columns", "NumberColumn", "StringColumn", "readonly"]


@dataclass(eq=False, slots=True)
class NumberColumn:
    """Numbers, booleans or enum codes with a validity mask.

    `values` is int64, int32, float64, float32 or bool of length n; where `valid` is False the value
    is 0 and means null.
    """

    values: NDArray[np.generic]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(eq=False, slots=True)
class StringColumn:
    """UTF-8 strings or bytes as views into one buffer.

    Record i is `data[starts[i] : starts[i] + lengths[i]]`; a length of -1 means null.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts)

    def bytes_at(self, index: int) -> bytes | None:
        """Return the bytes of one record, or None where it is null."""
        length = int(self.lengths[index])
        if length < 0:
            return None
        start = int(self.starts[index])
        return self.data[start : start + length].tobytes()

    def text_at(self, index: int) -> str | None:
        """Return one record as text, or None where it is null."""
        raw = self.bytes_at(index)
        return None if raw is None else raw.decode("utf-8")

    def take(self, rows: NDArray[np.integer[Any]] | slice) -> StringColumn:
        """Return the named rows; the bytes are shared with this column."""
        return StringColumn(self.data, self.starts[rows], self.lengths[rows])

    def to_list(self) -> list[str | None]:
        """Return all records as Python strings, a tenth of a `text_at` each.

        For tools, tests and the few rows of a batch that alert.
        """
        view = self.data.data
        return [
            None if length < 0 else str(view[start : start + length], "utf-8")
            for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        ]

    @staticmethod
    def from_texts(texts: Sequence[str | None]) -> StringColumn:
        """Build a column from Python strings (tools and tests only)."""
        return StringColumn.from_bytes(
            [None if text is None else text.encode("utf-8") for text in texts]
        )

    @staticmethod
    def from_bytes(values: Sequence[bytes | None]) -> StringColumn:
        """Build a column from bytes, packed one after another (not the hot path)."""
        lengths = np.array([-1 if value is None else len(value) for value in values], np.int32)
        sizes = np.maximum(lengths, 0).astype(np.int64)
        data = np.frombuffer(b"".join(value or b"" for value in values), np.uint8)
        return StringColumn(data, np.cumsum(sizes) - sizes, lengths)


Column: TypeAlias = NumberColumn | StringColumn
"""One field of a batch."""

Columns: TypeAlias = Mapping[str, Column]
"""A batch by field name."""


_Array = TypeVar("_Array", bound=NDArray[Any])


def readonly(array: _Array) -> _Array:
    """Return a read-only contiguous view: numba compiles a kernel once per kind of array."""
    if not array.flags.writeable and array.flags.c_contiguous:
        return array
    view: _Array = np.ascontiguousarray(array).view()  # type: ignore[assignment]
    view.flags.writeable = False
    return view
