"""The interpreter of decode programs: one pass over the batch, no allocation per record.

Every read is checked against the end of its record before it happens. A record that fails leaves its
reason in `status` and nulls in every column, and the next record starts from its own offset, so a
bad record cannot touch a neighbour. All arrays are C-contiguous; inputs are passed read-only so that
one compiled version serves writable and read-only buffers.
"""

from __future__ import annotations

import numba as nb
import numpy as np

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


@nb.njit(cache=True, nogil=True, inline="always")
def read_varint(data, position, end):  # type: ignore[no-untyped-def]
    """Return (value, next position); a negative next position is minus the reason."""
    if position >= end:
        return np.int64(0), np.int64(-_TRUNCATED)
    byte = np.uint64(data[position])
    position += 1
    raw = byte & np.uint64(0x7F)
    if byte >= np.uint64(0x80):
        shift = np.uint64(7)
        while True:
            if position >= end:
                return np.int64(0), np.int64(-_TRUNCATED)
            byte = np.uint64(data[position])
            position += 1
            # The tenth byte holds bit 63 alone: anything above it does not fit 64 bits.
            if shift == np.uint64(63) and byte > np.uint64(1):
                return np.int64(0), np.int64(-_BAD_VARINT)
            raw |= (byte & np.uint64(0x7F)) << shift
            if byte < np.uint64(0x80):
                break
            shift += np.uint64(7)
    value = np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1))
    return value, np.int64(position)


@nb.njit(cache=True, nogil=True)
def valid_utf8(data, start, end):  # type: ignore[no-untyped-def]
    """Return whether the bytes are UTF-8 as Unicode defines it: shortest form, no surrogates."""
    seen = np.uint8(0)
    for index in range(start, end):
        seen |= data[index]
    if seen < 0x80:
        return True
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
        position = starts[i] + 5
        end = starts[i] + np.int64(lengths[i])
        reason = 0
        depth = 0
        items = max_items
        pc = 0
        while True:
            code = program[pc, 0]
            slot = program[pc, 1]
            mark = program[pc, 2]
            pc += 1
            if op.INT <= code <= op.LONG_DOUBLE or code == op.SKIP_INT or code == op.SKIP_LONG:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if code == op.LONG:
                    longs[slot, i] = value
                    valid[mark, i] = True
                    continue
                if code == op.SKIP_LONG:
                    continue
                if code == op.LONG_DOUBLE:
                    doubles[slot, i] = np.float64(value)
                    valid[mark, i] = True
                    continue
                if code == op.LONG_FLOAT:
                    floats[slot, i] = np.float32(np.float64(value))
                    valid[mark, i] = True
                    continue
                if value < -2147483648 or value > 2147483647:
                    reason = _BAD_VARINT
                    break
                if code == op.SKIP_INT:
                    continue
                valid[mark, i] = True
                if code == op.INT:
                    ints[slot, i] = np.int32(value)
                elif code == op.INT_LONG:
                    longs[slot, i] = value
                elif code == op.INT_FLOAT:
                    floats[slot, i] = np.float32(value)
                else:
                    doubles[slot, i] = np.float64(value)
            elif (
                code == op.STRING
                or code == op.BYTES
                or code == op.SKIP_STRING
                or code == op.SKIP_BYTES
            ):
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                if value < 0:
                    reason = _BAD_LENGTH
                    break
                if value > max_string:
                    reason = _TOO_LONG
                    break
                if value > end - position:
                    reason = _TRUNCATED
                    break
                if (code == op.STRING or code == op.SKIP_STRING) and not valid_utf8(
                    data, position, position + value
                ):
                    reason = _INVALID_UTF8
                    break
                if code == op.STRING or code == op.BYTES:
                    text_starts[slot, i] = position
                    text_lengths[slot, i] = np.int32(value)
                position += value
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
                bits = np.uint64(0)
                for step in range(8):
                    bits |= np.uint64(data[position + step]) << np.uint64(8 * step)
                word[0] = bits
                doubles[slot, i] = as_double[0]
                valid[mark, i] = True
                position += 8
            elif code == op.END:
                if position != end:
                    reason = _TRAILING
                break
            elif code == op.ENUM or code == op.SKIP_ENUM:
                value, position = read_varint(data, position, end)
                if position < 0:
                    reason = -position
                    break
                count = slot if code == op.SKIP_ENUM else program[pc - 1, 3]
                if value < 0 or value >= count:
                    reason = _BAD_ENUM
                    break
                if code == op.ENUM:
                    symbol = tables[program[pc - 1, 4] + value]
                    if symbol < 0:
                        reason = _UNRESOLVABLE
                        break
                    ints[slot, i] = np.int32(symbol)
                    valid[mark, i] = True
            elif code == op.BOOLEAN or code == op.SKIP_BOOLEAN:
                if position >= end:
                    reason = _TRUNCATED
                    break
                if data[position] > 1:
                    reason = _BAD_BOOLEAN
                    break
                if code == op.BOOLEAN:
                    booleans[slot, i] = data[position] == 1
                    valid[mark, i] = True
                position += 1
            elif code == op.FLOAT or code == op.FLOAT_DOUBLE:
                if end - position < 4:
                    reason = _TRUNCATED
                    break
                as_words[0] = (
                    np.uint32(data[position])
                    | (np.uint32(data[position + 1]) << np.uint32(8))
                    | (np.uint32(data[position + 2]) << np.uint32(16))
                    | (np.uint32(data[position + 3]) << np.uint32(24))
                )
                if code == op.FLOAT:
                    floats[slot, i] = as_float[0]
                else:
                    doubles[slot, i] = np.float64(as_float[0])
                valid[mark, i] = True
                position += 4
            elif code == op.FIXED:
                if end - position < mark:
                    reason = _TRUNCATED
                    break
                text_starts[slot, i] = position
                text_lengths[slot, i] = np.int32(mark)
                position += mark
            elif code == op.SKIP_SIZE:
                if end - position < slot:
                    reason = _TRUNCATED
                    break
                position += slot
            elif code >= op.SET_BOOLEAN:
                third = program[pc - 1, 3]
                if code == op.SET_STRING:
                    text_starts[slot, i] = constants_at + mark
                    text_lengths[slot, i] = np.int32(third)
                    continue
                valid[mark, i] = True
                if code == op.SET_BOOLEAN:
                    booleans[slot, i] = third != 0
                elif code == op.SET_INT:
                    ints[slot, i] = np.int32(third)
                elif code == op.SET_LONG:
                    longs[slot, i] = third
                else:
                    word[0] = np.uint64(third)
                    if code == op.SET_FLOAT:
                        floats[slot, i] = np.float32(as_double[0])
                    else:
                        doubles[slot, i] = as_double[0]
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
