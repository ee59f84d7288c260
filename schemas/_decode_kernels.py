"""The interpreter of decode programs: one pass over the batch, no allocation per record.

Every read is checked against the end of its record before it happens. A record that fails leaves its
reason in `status` and nulls in every column, and the next record starts from its own offset, so a
bad record cannot touch a neighbour. All arrays are C-contiguous; inputs are passed read-only so that
one compiled version serves writable and read-only buffers.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from schemas import _opcodes as op
from schemas.reasons import Reason

_NULL_VALUE = int(Reason.NULL_VALUE)
_OVERSIZED = int(Reason.OVERSIZED)
_NOT_AVRO = int(Reason.NOT_AVRO)
_TRUNCATED = int(Reason.TRUNCATED)
_TRAILING = int(Reason.TRAILING_BYTES)
_BAD_VARINT = int(Reason.BAD_VARINT)
_BAD_LENGTH = int(Reason.BAD_LENGTH)
_BAD_BRANCH = int(Reason.BAD_UNION_BRANCH)
_BAD_ENUM = int(Reason.BAD_ENUM_INDEX)
_BAD_BOOLEAN = int(Reason.BAD_BOOLEAN)
_INVALID_UTF8 = int(Reason.INVALID_UTF8)
_TOO_LONG = int(Reason.STRING_TOO_LONG)
_NESTING = int(Reason.NESTING)
_TOO_MANY = int(Reason.TOO_MANY_ITEMS)
_UNRESOLVABLE = int(Reason.UNRESOLVABLE)


def _loader(bits: int) -> Any:
    """Build an intrinsic that reads an unsigned little-endian number at any offset of a byte array.

    It neither checks bounds nor wraps negative offsets: every caller has compared the offset with
    the end of its record first. One load replaces the byte-by-byte assembly.
    """

    @intrinsic
    def load(typing_context, array, index):  # type: ignore[no-untyped-def]
        result = nb.types.Integer.from_bitwidth(bits, signed=False)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            start = builder.gep(made.data, [arguments[1]])
            typed = builder.bitcast(start, ir.IntType(bits).as_pointer())
            loaded = builder.load(typed)
            loaded.align = 1
            return loaded

        return result(array, nb.types.int64), generate

    return load


_u8 = _loader(8)
_u32 = _loader(32)
_u64 = _loader(64)
_HIGH_BITS = np.uint64(0x8080808080808080)
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_PAIRS_HIGH, _PAIRS_LOW = np.uint64(0x7F007F007F007F00), np.uint64(0x007F007F007F007F)
_QUADS_HIGH, _QUADS_LOW = np.uint64(0x3FFF00003FFF0000), np.uint64(0x00003FFF00003FFF)
_HALF_HIGH, _HALF_LOW = np.uint64(0x0FFFFFFF00000000), np.uint64(0x000000000FFFFFFF)


@intrinsic
def _trailing_zeros(typing_context, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return nb.types.uint64(nb.types.uint64), generate


@nb.njit(cache=True, nogil=True)
def _read_long_varint(data, position, end):  # type: ignore[no-untyped-def]
    raw = np.uint64(0)
    shift = np.uint64(0)
    while True:
        if position >= end:
            return np.int64(0), np.int64(-_TRUNCATED)
        byte = np.uint64(_u8(data, position))
        position += 1
        # The tenth byte holds bit 63 alone: anything above it does not fit 64 bits.
        if shift == np.uint64(63) and byte > np.uint64(1):
            return np.int64(0), np.int64(-_BAD_VARINT)
        raw |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            break
        shift += np.uint64(7)
    return np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1)), position


@nb.njit(cache=True, nogil=True)
def read_varint(data, position, end):  # type: ignore[no-untyped-def]
    """Return (value, next position); a negative next position is minus the reason."""
    if position < end:
        byte = np.int64(_u8(data, position))
        if byte < 0x80:
            return (byte >> 1) ^ -(byte & 1), position + 1
        if position + 8 <= end:
            # Up to eight bytes in one load: keep those through the first without the high bit,
            # then close the gaps of one bit between them, by pairs, fours and eights.
            word = _u64(data, position)
            stops = ~word & _HIGH_BITS
            if stops != np.uint64(0):
                word &= (stops ^ (stops - np.uint64(1))) & _LOW_BITS
                word = ((word & _PAIRS_HIGH) >> np.uint64(1)) | (word & _PAIRS_LOW)
                word = ((word & _QUADS_HIGH) >> np.uint64(2)) | (word & _QUADS_LOW)
                word = ((word & _HALF_HIGH) >> np.uint64(4)) | (word & _HALF_LOW)
                size = np.int64((_trailing_zeros(stops) + np.uint64(1)) >> np.uint64(3))
                value = np.int64(word >> np.uint64(1)) ^ -np.int64(word & np.uint64(1))
                return value, position + size
    return _read_long_varint(data, position, end)


@nb.njit(cache=True, nogil=True)
def valid_utf8(data, start, end):  # type: ignore[no-untyped-def]
    """Return whether the bytes are UTF-8 as Unicode defines it: shortest form, no surrogates."""
    # Nearly all text is ASCII: look at eight bytes at a time, the last eight overlapping.
    size = end - start
    if size == 0:
        return True
    if size >= 8:
        seen = _u64(data, end - 8)
        index = start
        while index < end - 8:
            seen |= _u64(data, index)
            index += 8
    elif end >= 8:
        # Bytes before the text fall out of the word's low end.
        seen = _u64(data, end - 8) >> np.uint64(64 - 8 * size)
    else:
        seen = _HIGH_BITS
    if seen & _HIGH_BITS == np.uint64(0):
        return True
    return _valid_utf8_bytes(data, start, end)


@nb.njit(cache=True, nogil=True)
def _valid_utf8_bytes(data, start, end):  # type: ignore[no-untyped-def]
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


@nb.njit(cache=True, nogil=True)
def scan_headers(data, starts, lengths, max_bytes, status, ids):  # type: ignore[no-untyped-def]
    """Fill `ids` and the status of records that have no readable header.

    Returns (number of readable headers, first id among them, whether all share it).
    """
    readable = 0
    first = np.int32(0)
    same = True
    size = np.int64(data.shape[0])
    for i in range(starts.shape[0]):
        length = np.int64(lengths[i])
        start = starts[i]
        ids[i] = -1
        if length < 0:
            status[i] = _NULL_VALUE
        elif length > max_bytes:
            status[i] = _OVERSIZED
        elif start < 0 or start + length > size:
            status[i] = _TRUNCATED
        elif length < 5 or data[start] != 0:
            status[i] = _NOT_AVRO
        else:
            schema_id = np.int32(
                (np.uint32(data[start + 1]) << np.uint32(24))
                | (np.uint32(data[start + 2]) << np.uint32(16))
                | (np.uint32(data[start + 3]) << np.uint32(8))
                | np.uint32(data[start + 4])
            )
            ids[i] = schema_id
            if readable == 0:
                first = schema_id
            elif schema_id != first:
                same = False
            readable += 1
    return readable, first, same


@nb.njit(cache=True, nogil=True)
def read_varint_byte(data, position, end):  # type: ignore[no-untyped-def]
    """Return (0 or 2: twice the branch of a union of two, next position), as `read_varint`."""
    if position < end and _u8(data, position) & np.uint8(0xFD) == 0:
        return np.int64(_u8(data, position)), position + 1
    value, position = read_varint(data, position, end)
    if position >= 0 and (value < 0 or value > 1):
        return np.int64(0), np.int64(-_BAD_BRANCH)
    return 2 * value, position


@nb.njit(cache=True, nogil=True)
def check_length(value, left, max_string):  # type: ignore[no-untyped-def]
    """Return the reason why a length is refused, or 0."""
    if value < 0:
        return _BAD_LENGTH
    if value > max_string:
        return _TOO_LONG
    return _TRUNCATED if value > left else 0


@nb.njit(cache=True, nogil=True)
def decode_records(  # type: ignore[no-untyped-def]
    data,
    starts,
    lengths,
    ids,
    schema_id,
    program,
    tables,
    max_string,
    max_nesting,
    max_items,
    constants_at,
    status,
    booleans,
    ints,
    longs,
    floats,
    doubles,
    valid,
    text_starts,
    text_lengths,
):
    """Run `program` over the records whose status is 0 and whose id is `schema_id`."""
    frames = np.zeros(max_nesting + 1, np.int64)
    block_ends = np.zeros(max_nesting + 1, np.int64)
    word = np.zeros(1, np.uint64)
    as_double = word.view(np.float64)
    as_words = np.zeros(2, np.uint32)
    as_float = as_words.view(np.float32)
    for i in range(starts.shape[0]):
        if status[i] != 0 or ids[i] != schema_id:
            continue
        column = np.uint64(i)
        position = starts[i] + 5
        end = starts[i] + np.int64(lengths[i])
        reason = 0
        depth = 0
        items = max_items
        pc = 0
        while True:
            at = np.uint64(pc)
            code = program[at, 0]
            slot = program[at, 1]
            mark = program[at, 2]
            # Unsigned indexes spare numba's test for negative ones.
            row, flag = np.uint64(slot), np.uint64(mark)
            pc += 1
            if code >= op.NULL_FIRST:
                # A union of null and one type, the null branch first or second: 0 or 2 in one byte.
                null_byte = (code & op.NULL_SECOND) >> 6
                value, position = read_varint_byte(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value == null_byte:
                    continue
                code &= op.NULL_FIRST - 1
            if code == op.LONG:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                longs[row, column] = value
                valid[flag, column] = True
            elif code == op.INT_LONG:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < -2147483648 or value > 2147483647:
                    reason = _BAD_VARINT
                    break
                longs[row, column] = value
                valid[flag, column] = True
            elif code == op.INT:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < -2147483648 or value > 2147483647:
                    reason = _BAD_VARINT
                    break
                ints[row, column] = np.int32(value)
                valid[flag, column] = True
            elif code == op.INT_FLOAT:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < -2147483648 or value > 2147483647:
                    reason = _BAD_VARINT
                    break
                floats[row, column] = np.float32(value)
                valid[flag, column] = True
            elif code == op.INT_DOUBLE:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < -2147483648 or value > 2147483647:
                    reason = _BAD_VARINT
                    break
                doubles[row, column] = np.float64(value)
                valid[flag, column] = True
            elif code == op.LONG_FLOAT:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                floats[row, column] = np.float32(np.float64(value))
                valid[flag, column] = True
            elif code == op.LONG_DOUBLE:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                doubles[row, column] = np.float64(value)
                valid[flag, column] = True
            elif code == op.SKIP_INT:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < -2147483648 or value > 2147483647:
                    reason = _BAD_VARINT
                    break
            elif code == op.SKIP_LONG:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
            elif code == op.STRING:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                reason = check_length(value, end - position, max_string)
                if reason != 0:
                    break
                if not valid_utf8(data, position, position + value):
                    reason = _INVALID_UTF8
                    break
                text_starts[row, column] = position
                text_lengths[row, column] = np.int32(value)
                position += value
            elif code == op.BYTES:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                reason = check_length(value, end - position, max_string)
                if reason != 0:
                    break
                text_starts[row, column] = position
                text_lengths[row, column] = np.int32(value)
                position += value
            elif code == op.NULLABLE:
                value, position = read_varint_byte(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value == mark:
                    pc = slot
            elif code == op.UNION:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < 0 or value >= slot:
                    reason = _BAD_BRANCH
                    break
                pc = tables[mark + value]
            elif code == op.JUMP:
                pc = slot
            elif code == op.DOUBLE:
                if end - position < 8:
                    reason = _TRUNCATED
                    break
                word[0] = _u64(data, position)
                doubles[row, column] = as_double[0]
                valid[flag, column] = True
                position += 8
            elif code == op.END:
                if position != end:
                    reason = _TRAILING
                break
            elif code == op.ENUM:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < 0 or value >= program[pc - 1, 3]:
                    reason = _BAD_ENUM
                    break
                symbol = tables[program[pc - 1, 4] + value]
                if symbol < 0:
                    reason = _UNRESOLVABLE
                    break
                ints[row, column] = np.int32(symbol)
                valid[flag, column] = True
            elif code == op.SKIP_ENUM:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < 0 or value >= slot:
                    reason = _BAD_ENUM
                    break
            elif code == op.BOOLEAN:
                if position >= end:
                    reason = _TRUNCATED
                    break
                if _u8(data, position) > 1:
                    reason = _BAD_BOOLEAN
                    break
                booleans[row, column] = _u8(data, position) == 1
                valid[flag, column] = True
                position += 1
            elif code == op.SKIP_BOOLEAN:
                if position >= end:
                    reason = _TRUNCATED
                    break
                if _u8(data, position) > 1:
                    reason = _BAD_BOOLEAN
                    break
                position += 1
            elif code == op.FLOAT:
                if end - position < 4:
                    reason = _TRUNCATED
                    break
                as_words[0] = _u32(data, position)
                floats[row, column] = as_float[0]
                valid[flag, column] = True
                position += 4
            elif code == op.FLOAT_DOUBLE:
                if end - position < 4:
                    reason = _TRUNCATED
                    break
                as_words[0] = _u32(data, position)
                doubles[row, column] = np.float64(as_float[0])
                valid[flag, column] = True
                position += 4
            elif code == op.SKIP_STRING:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                reason = check_length(value, end - position, max_string)
                if reason != 0:
                    break
                if not valid_utf8(data, position, position + value):
                    reason = _INVALID_UTF8
                    break
                position += value
            elif code == op.SKIP_BYTES:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                reason = check_length(value, end - position, max_string)
                if reason != 0:
                    break
                position += value
            elif code == op.FIXED:
                if end - position < mark:
                    reason = _TRUNCATED
                    break
                text_starts[row, column] = position
                text_lengths[row, column] = np.int32(mark)
                position += mark
            elif code == op.SKIP_SIZE:
                if end - position < slot:
                    reason = _TRUNCATED
                    break
                position += slot
            elif code == op.SET_STRING:
                text_starts[row, column] = constants_at + mark
                text_lengths[row, column] = np.int32(program[pc - 1, 3])
            elif code == op.SET_BOOLEAN:
                booleans[row, column] = program[pc - 1, 3] != 0
                valid[flag, column] = True
            elif code == op.SET_INT:
                ints[row, column] = np.int32(program[pc - 1, 3])
                valid[flag, column] = True
            elif code == op.SET_LONG:
                longs[row, column] = program[pc - 1, 3]
                valid[flag, column] = True
            elif code == op.SET_FLOAT:
                word[0] = np.uint64(program[pc - 1, 3])
                floats[row, column] = np.float32(as_double[0])
                valid[flag, column] = True
            elif code == op.SET_DOUBLE:
                word[0] = np.uint64(program[pc - 1, 3])
                doubles[row, column] = as_double[0]
                valid[flag, column] = True
            elif code == op.BLOCKS or code == op.NEXT:
                if code == op.BLOCKS:
                    if depth >= max_nesting:
                        reason = _NESTING
                        break
                    depth += 1
                    left = np.int64(0)
                else:
                    left = frames[depth] - 1
                    if left == 0 and block_ends[depth] >= 0 and position != block_ends[depth]:
                        reason = _BAD_LENGTH
                        break
                if left == 0:
                    left, position = read_varint(data, position, end)
                    if position < 0:
                        reason = -position
                        break
                    block_ends[depth] = -1
                    if left < 0:
                        # A negative count is followed by the block's size in bytes. Decoders that
                        # skip trust it, decoders that read ignore it; here it has to be right.
                        value, position = read_varint(data, position, end)
                        if position < 0:
                            reason = -position
                            break
                        if left == np.int64(-9223372036854775808) or value < 0:
                            reason = _BAD_LENGTH
                            break
                        if value > end - position:
                            reason = _TRUNCATED
                            break
                        left = -left
                        block_ends[depth] = position + value
                    if left > items:
                        reason = _TOO_MANY
                        break
                    items -= left
                if left == 0:
                    depth -= 1
                    pc = slot if code == op.BLOCKS else mark
                else:
                    frames[depth] = left
                    if code == op.NEXT:
                        pc = slot
            elif code == op.CALL:
                if depth >= max_nesting:
                    reason = _NESTING
                    break
                depth += 1
                frames[depth] = pc
                pc = slot
            elif code == op.RETURN:
                pc = frames[depth]
                depth -= 1
            elif code == op.ENTER:
                if depth >= max_nesting:
                    reason = _NESTING
                    break
                depth += 1
            elif code == op.LEAVE:
                depth -= 1
            else:
                reason = slot if code == op.FAIL else _UNRESOLVABLE
                break
        if reason != 0:
            status[i] = reason
            booleans[:, i] = False
            ints[:, i] = 0
            longs[:, i] = 0
            floats[:, i] = 0.0
            doubles[:, i] = 0.0
            valid[:, i] = False
            text_starts[:, i] = 0
            text_lengths[:, i] = -1
