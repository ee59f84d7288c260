"""The encoder's two passes over columns: how long is each record, then its bytes.

One instruction a field: kind, row of the column in the matrix of its kind, row of the validity
matrix (-1: never null), the null branch's byte (-1: no union), and the offset of a constant.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BOOLEAN",
    "CONSTANT",
    "DOUBLE",
    "FIXED",
    "FLOAT",
    "INTEGER",
    "TEXT",
    "measure",
    "write",
]

BOOLEAN: Final = 0
INTEGER: Final = 1
FLOAT: Final = 2
DOUBLE: Final = 3
TEXT: Final = 4
FIXED: Final = 5
CONSTANT: Final = 6

_NULL_IN_PLAIN: Final = 1
_OUT_OF_RANGE: Final = 2
_FIXED_SIZE: Final = 3


@nb.njit(cache=True, nogil=True)
def _varint_size(value: np.int64) -> int:
    raw = (np.uint64(value) << np.uint64(1)) ^ np.uint64(value >> np.int64(63))
    size = 1
    while raw >= np.uint64(0x80):
        raw >>= np.uint64(7)
        size += 1
    return size


@nb.njit(cache=True, nogil=True)
def _put_varint(out: NDArray[np.uint8], at: int, value: np.int64) -> int:
    raw = (np.uint64(value) << np.uint64(1)) ^ np.uint64(value >> np.int64(63))
    while raw >= np.uint64(0x80):
        out[at] = np.uint8(raw & np.uint64(0x7F)) | np.uint8(0x80)
        raw >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(raw)
    return at + 1


@nb.njit(cache=True, nogil=True)
def measure(
    plan: NDArray[np.int64],
    integers: NDArray[np.int64],
    lows: NDArray[np.int64],
    highs: NDArray[np.int64],
    text_lengths: NDArray[np.int32],
    valid: NDArray[np.bool_],
    lengths: NDArray[np.int32],
) -> tuple[int, int, int]:
    """Fill `lengths` with each record's size; return (problem or 0, field, record)."""
    count = lengths.shape[0]
    for i in range(count):
        size: int | np.int64 = 5
        for field in range(plan.shape[0]):
            kind, row, mark, null_byte = (
                plan[field, 0],
                plan[field, 1],
                plan[field, 2],
                plan[field, 3],
            )
            if kind == CONSTANT:
                size += plan[field, 5]
                continue
            is_text = kind in (TEXT, FIXED)
            is_null = text_lengths[row, i] < 0 if is_text else not valid[mark, i]
            if null_byte >= 0:
                size += 1
                if is_null:
                    continue
            elif is_null:
                return _NULL_IN_PLAIN, field, i
            if kind == INTEGER:
                value = integers[row, i]
                if value < lows[row] or value > highs[row]:
                    return _OUT_OF_RANGE, field, i
                size += _varint_size(value)
            elif kind == TEXT:
                length = np.int64(text_lengths[row, i])
                size += _varint_size(length) + length
            elif kind == FIXED:
                if text_lengths[row, i] != plan[field, 5]:
                    return _FIXED_SIZE, field, i
                size += plan[field, 5]
            elif kind == DOUBLE:
                size += 8
            elif kind == FLOAT:
                size += 4
            else:
                size += 1
        lengths[i] = size
    return 0, 0, 0


@nb.njit(cache=True, nogil=True)
def write(
    plan: NDArray[np.int64],
    schema_id: int,
    constants: NDArray[np.uint8],
    integers: NDArray[np.int64],
    reals: NDArray[np.uint64],
    texts: NDArray[np.uint8],
    text_bases: NDArray[np.int64],
    text_starts: NDArray[np.int64],
    text_lengths: NDArray[np.int32],
    valid: NDArray[np.bool_],
    starts: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Write every record at its start; `measure` has checked all values."""
    for i in range(starts.shape[0]):
        at = starts[i]
        out[at] = 0
        for step in range(4):
            out[at + 1 + step] = np.uint8((schema_id >> (24 - 8 * step)) & 0xFF)
        at += 5
        for field in range(plan.shape[0]):
            kind, row, mark, null_byte = (
                plan[field, 0],
                plan[field, 1],
                plan[field, 2],
                plan[field, 3],
            )
            if kind == CONSTANT:
                for step in range(plan[field, 5]):
                    out[at + step] = constants[plan[field, 4] + step]
                at += plan[field, 5]
                continue
            if null_byte >= 0:
                is_text = kind in (TEXT, FIXED)
                is_null = text_lengths[row, i] < 0 if is_text else not valid[mark, i]
                out[at] = np.uint8(null_byte if is_null else 2 - null_byte)
                at += 1
                if is_null:
                    continue
            if kind == INTEGER:
                at = _put_varint(out, at, integers[row, i])
            elif kind in (TEXT, FIXED):
                length = np.int64(text_lengths[row, i])
                if kind == TEXT:
                    at = _put_varint(out, at, length)
                start = text_bases[row] + text_starts[row, i]
                for step in range(length):
                    out[at + step] = texts[start + step]
                at += length
            elif kind == BOOLEAN:
                out[at] = np.uint8(integers[row, i] != 0)
                at += 1
            else:
                size = 8 if kind == DOUBLE else 4
                bits = reals[row, i]
                for step in range(size):
                    out[at + step] = np.uint8((bits >> np.uint64(8 * step)) & np.uint64(0xFF))
                at += size
