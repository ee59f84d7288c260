"""The interpreter of decode programs: one pass over the batch, no allocation per record.

Every read is checked against the end of its record before it happens. A record that fails leaves
its reason in `status` and nulls in every column, and the next record starts from its own offset, so
a bad record cannot touch a neighbour. All arrays are C-contiguous; inputs are passed read-only, so
that one compiled version serves writable and read-only buffers.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from schemas import _opcodes as op
from schemas._read_kernels import (
    check_length,
    load_u8,
    load_u32,
    load_u64,
    read_varint,
    read_varint_byte,
    valid_utf8,
)
from schemas.reasons import Reason

__all__ = ["decode_records", "scan_headers"]

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
_NESTING = int(Reason.NESTING)
_TOO_MANY = int(Reason.TOO_MANY_ITEMS)
_UNRESOLVABLE = int(Reason.UNRESOLVABLE)


@nb.njit(cache=True, nogil=True)
def scan_headers(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    max_bytes: int,
    status: NDArray[np.uint8],
    ids: NDArray[np.int32],
) -> tuple[int, np.int32, bool]:
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
def decode_records(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    ids: NDArray[np.int32],
    schema_id: int,
    program: NDArray[np.int64],
    tables: NDArray[np.int64],
    max_string: int,
    max_nesting: int,
    max_items: int,
    constants_at: int,
    status: NDArray[np.uint8],
    booleans: NDArray[np.bool_],
    ints: NDArray[np.int32],
    longs: NDArray[np.int64],
    floats: NDArray[np.float32],
    doubles: NDArray[np.float64],
    valid: NDArray[np.bool_],
    text_starts: NDArray[np.int64],
    text_lengths: NDArray[np.int32],
) -> None:
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
        reason: int | np.int64 = 0
        depth = 0
        items: int | np.int64 = max_items
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
                word[0] = load_u64(data, position)
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
                if load_u8(data, position) > 1:
                    reason = _BAD_BOOLEAN
                    break
                booleans[row, column] = load_u8(data, position) == 1
                valid[flag, column] = True
                position += 1
            elif code == op.SKIP_BOOLEAN:
                if position >= end:
                    reason = _TRUNCATED
                    break
                if load_u8(data, position) > 1:
                    reason = _BAD_BOOLEAN
                    break
                position += 1
            elif code == op.FLOAT:
                if end - position < 4:
                    reason = _TRUNCATED
                    break
                as_words[0] = load_u32(data, position)
                floats[row, column] = as_float[0]
                valid[flag, column] = True
                position += 4
            elif code == op.FLOAT_DOUBLE:
                if end - position < 4:
                    reason = _TRUNCATED
                    break
                as_words[0] = load_u32(data, position)
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
