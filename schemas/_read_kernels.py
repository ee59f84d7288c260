"""What the decode program's operations are made of: bounded reads of numbers and text.

Kept apart from the interpreter so that each can be read on its own. Positions and ends are offsets
in the batch's buffer; a negative position is minus the reason of a refusal.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from schemas.reasons import Reason

__all__ = [
    "check_length",
    "load_u8",
    "load_u32",
    "load_u64",
    "read_varint",
    "read_varint_byte",
    "valid_utf8",
]

_TRUNCATED = int(Reason.TRUNCATED)
_BAD_VARINT = int(Reason.BAD_VARINT)
_BAD_LENGTH = int(Reason.BAD_LENGTH)
_BAD_BRANCH = int(Reason.BAD_UNION_BRANCH)
_TOO_LONG = int(Reason.STRING_TOO_LONG)


def _loader(bits: int) -> Any:
    """Build an intrinsic that reads an unsigned little-endian number at any offset of a byte array.

    It neither checks bounds nor wraps negative offsets: every caller has compared the offset with
    the end of its record first. One load replaces the byte-by-byte assembly.
    """

    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        result = nb.types.Integer.from_bitwidth(bits, signed=False)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            start = builder.gep(made.data, [arguments[1]])
            typed = builder.bitcast(start, ir.IntType(bits).as_pointer())
            loaded = builder.load(typed)
            loaded.align = 1
            return loaded

        return result(array, nb.types.int64), generate

    return load


load_u8 = _loader(8)
load_u32 = _loader(32)
load_u64 = _loader(64)
_HIGH_BITS = np.uint64(0x8080808080808080)
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_PAIRS_HIGH, _PAIRS_LOW = np.uint64(0x7F007F007F007F00), np.uint64(0x007F007F007F007F)
_QUADS_HIGH, _QUADS_LOW = np.uint64(0x3FFF00003FFF0000), np.uint64(0x00003FFF00003FFF)
_HALF_HIGH, _HALF_LOW = np.uint64(0x0FFFFFFF00000000), np.uint64(0x000000000FFFFFFF)


def _zero_counter() -> Any:
    """Build an intrinsic that counts the zero bits below the lowest set one; 0 is undefined."""

    @intrinsic
    def count(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.cttz(arguments[0], ir.IntType(1)(1))

        return nb.types.uint64(nb.types.uint64), generate

    return count


_trailing_zeros = _zero_counter()


@nb.njit(cache=True, nogil=True)
def _read_long_varint(
    data: NDArray[np.uint8], position: np.int64, end: np.int64
) -> tuple[np.int64, np.int64]:
    if position + 8 <= end:
        # Up to eight bytes in one load: keep those through the first without the high bit,
        # then close the gaps of one bit between them, by pairs, fours and eights.
        word = load_u64(data, position)
        stops = ~word & _HIGH_BITS
        if stops != np.uint64(0):
            word &= (stops ^ (stops - np.uint64(1))) & _LOW_BITS
            word = ((word & _PAIRS_HIGH) >> np.uint64(1)) | (word & _PAIRS_LOW)
            word = ((word & _QUADS_HIGH) >> np.uint64(2)) | (word & _QUADS_LOW)
            word = ((word & _HALF_HIGH) >> np.uint64(4)) | (word & _HALF_LOW)
            size = np.int64((_trailing_zeros(stops) + np.uint64(1)) >> np.uint64(3))
            value = np.int64(word >> np.uint64(1)) ^ -np.int64(word & np.uint64(1))
            return value, position + size
    raw = np.uint64(0)
    shift = np.uint64(0)
    while True:
        if position >= end:
            return np.int64(0), np.int64(-_TRUNCATED)
        byte = np.uint64(load_u8(data, position))
        position += 1
        # The tenth byte holds bit 63 alone: anything above it does not fit 64 bits.
        if shift == np.uint64(63) and byte > np.uint64(1):
            return np.int64(0), np.int64(-_BAD_VARINT)
        raw |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            break
        shift += np.uint64(7)
    return np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1)), position


# Only the case of one byte is inlined at each of some twenty places; calls cost more than it does.
@nb.njit(cache=True, nogil=True, forceinline=True)
def read_varint(
    data: NDArray[np.uint8], position: np.int64, end: np.int64
) -> tuple[np.int64, np.int64]:
    """Return (value, next position); a negative next position is minus the reason."""
    if position < end:
        byte = np.int64(load_u8(data, position))
        if byte < 0x80:
            return (byte >> 1) ^ -(byte & 1), position + 1
    return _read_long_varint(data, position, end)


@nb.njit(cache=True, nogil=True, forceinline=True)
def valid_utf8(data: NDArray[np.uint8], start: np.int64, end: np.int64) -> bool:
    """Return whether the bytes are UTF-8 as Unicode defines it: shortest form, no surrogates."""
    # Nearly all text is ASCII: look at eight bytes at a time, the last eight overlapping.
    size = end - start
    if size == 0:
        return True
    if size >= 8:
        seen = load_u64(data, end - 8)
        index = start
        while index < end - 8:
            seen |= load_u64(data, index)
            index += 8
    elif end >= 8:
        # Bytes before the text fall out of the word's low end.
        seen = load_u64(data, end - 8) >> np.uint64(64 - 8 * size)
    else:
        seen = _HIGH_BITS
    if seen & _HIGH_BITS == np.uint64(0):
        return True
    return _valid_utf8_bytes(data, start, end)


@nb.njit(cache=True, nogil=True)
def _valid_utf8_bytes(data: NDArray[np.uint8], start: np.int64, end: np.int64) -> bool:
    index = start
    while index < end:
        lead = data[index]
        index += 1
        if lead < 0x80:
            continue
        low, high = np.uint8(0x80), np.uint8(0xBF)
        if lead < 0xC2:
            return False
        if lead < 0xE0:
            more = 1
        elif lead < 0xF0:
            more = 2
            if lead == 0xE0:
                low = np.uint8(0xA0)
            elif lead == 0xED:
                high = np.uint8(0x9F)
        elif lead < 0xF5:
            more = 3
            if lead == 0xF0:
                low = np.uint8(0x90)
            elif lead == 0xF4:
                high = np.uint8(0x8F)
        else:
            return False
        if index + more > end:
            return False
        if data[index] < low or data[index] > high:
            return False
        for step in range(1, more):
            if data[index + step] < 0x80 or data[index + step] > 0xBF:
                return False
        index += more
    return True


@nb.njit(cache=True, nogil=True, forceinline=True)
def read_varint_byte(
    data: NDArray[np.uint8], position: np.int64, end: np.int64
) -> tuple[np.int64, np.int64]:
    """Return (0 or 2: twice the branch of a union of two, next position), as `read_varint`."""
    if position < end and load_u8(data, position) & np.uint8(0xFD) == 0:
        return np.int64(load_u8(data, position)), position + 1
    value, position = read_varint(data, position, end)
    if position >= 0 and (value < 0 or value > 1):
        return np.int64(0), np.int64(-_BAD_BRANCH)
    return 2 * value, position


@nb.njit(cache=True, nogil=True, forceinline=True)
def check_length(value: np.int64, left: np.int64, max_string: int) -> int:
    """Return the reason why a length is refused, or 0."""
    if value < 0:
        return _BAD_LENGTH
    if value > max_string:
        return _TOO_LONG
    return _TRUNCATED if value > left else 0
