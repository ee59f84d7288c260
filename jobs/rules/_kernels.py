"""Numba kernels of the rule language: one pass over a program, one over the texts of a column.

A program is rows of (operation, argument a, argument b) for a stack machine whose stack slots are
whole columns. A null is NaN; a truth value is 1, 0 or NaN (unknown), as in SQL.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

__all__ = [
    "ABS",
    "ADD",
    "AND",
    "COALESCE",
    "CONSTANT",
    "DIVIDE",
    "EQUAL",
    "GREATER",
    "GREATER_EQUAL",
    "IN",
    "IS_NULL",
    "LESS",
    "LESS_EQUAL",
    "LOAD",
    "MAXIMUM",
    "MINIMUM",
    "MULTIPLY",
    "NEGATE",
    "NOT",
    "NOT_EQUAL",
    "OR",
    "STORE",
    "SUBTRACT",
    "TRUTH",
    "has_prefix",
    "match_texts",
    "run_program",
    "same_texts",
]

LOAD: Final = 0
CONSTANT: Final = 1
ADD: Final = 2
SUBTRACT: Final = 3
MULTIPLY: Final = 4
DIVIDE: Final = 5
MINIMUM: Final = 6
MAXIMUM: Final = 7
LESS: Final = 8
LESS_EQUAL: Final = 9
GREATER: Final = 10
GREATER_EQUAL: Final = 11
EQUAL: Final = 12
NOT_EQUAL: Final = 13
AND: Final = 14
OR: Final = 15
COALESCE: Final = 16
NEGATE: Final = 17
ABS: Final = 18
NOT: Final = 19
IS_NULL: Final = 20
TRUTH: Final = 21
IN: Final = 22
STORE: Final = 23

# Signatures are fixed, so that nothing is compiled while events wait. A read-only, strided type
# also accepts writable and contiguous arrays.
_CODE = types.Array(types.int32, 2, "C", readonly=True)
_NUMBERS = types.Array(types.float64, 1, "C", readonly=True)
_MATRIX = types.Array(types.float64, 2, "C")
_FIRED = types.Array(types.boolean, 2, "C")
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_BOUNDS = types.Array(types.int64, 1, "C", readonly=True)
_STARTS = types.Array(types.int64, 1, "A", readonly=True)
_LENGTHS = types.Array(types.int32, 1, "A", readonly=True)
_OUT = types.Array(types.float64, 1, "A")


@njit(
    types.void(types.int32, types.Array(types.float64, 1, "C"), types.Array(types.float64, 1, "C")),
    cache=True,
    nogil=True,
)
def _binary(operation: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    # One loop per operation, without a branch inside: the compiler turns each into vector code.
    n = len(x)
    if operation == ADD:
        for i in range(n):
            x[i] = x[i] + y[i]
    elif operation == SUBTRACT:
        for i in range(n):
            x[i] = x[i] - y[i]
    elif operation == MULTIPLY:
        for i in range(n):
            x[i] = x[i] * y[i]
    elif operation == DIVIDE:
        for i in range(n):
            x[i] = x[i] / (y[i] if y[i] != 0.0 else np.nan)
    elif operation == MINIMUM:
        for i in range(n):
            x[i] = (x[i] if x[i] < y[i] else y[i]) if x[i] == x[i] else x[i]
    elif operation == MAXIMUM:
        for i in range(n):
            x[i] = (x[i] if x[i] > y[i] else y[i]) if x[i] == x[i] else x[i]
    elif operation == COALESCE:
        for i in range(n):
            x[i] = x[i] if x[i] == x[i] else y[i]
    elif operation == AND:
        for i in range(n):
            x[i] = 0.0 if x[i] == 0.0 or y[i] == 0.0 else x[i] * y[i]
    elif operation == OR:
        for i in range(n):
            x[i] = 1.0 if x[i] == 1.0 or y[i] == 1.0 else x[i] + y[i]
    elif operation == LESS:
        for i in range(n):
            x[i] = (1.0 if x[i] < y[i] else 0.0) if x[i] == x[i] and y[i] == y[i] else np.nan
    elif operation == LESS_EQUAL:
        for i in range(n):
            x[i] = (1.0 if x[i] <= y[i] else 0.0) if x[i] == x[i] and y[i] == y[i] else np.nan
    elif operation == GREATER:
        for i in range(n):
            x[i] = (1.0 if x[i] > y[i] else 0.0) if x[i] == x[i] and y[i] == y[i] else np.nan
    elif operation == GREATER_EQUAL:
        for i in range(n):
            x[i] = (1.0 if x[i] >= y[i] else 0.0) if x[i] == x[i] and y[i] == y[i] else np.nan
    elif operation == EQUAL:
        for i in range(n):
            x[i] = (1.0 if x[i] == y[i] else 0.0) if x[i] == x[i] and y[i] == y[i] else np.nan
    else:
        for i in range(n):
            x[i] = (1.0 if x[i] != y[i] else 0.0) if x[i] == x[i] and y[i] == y[i] else np.nan


@njit(types.void(_CODE, _NUMBERS, _MATRIX, _MATRIX, _FIRED), cache=True, nogil=True)
def run_program(
    program: NDArray[np.int32],
    constants: NDArray[np.float64],
    inputs: NDArray[np.float64],
    stack: NDArray[np.float64],
    fired: NDArray[np.bool_],
) -> None:
    """Run `program` over the columns of `inputs`, writing one column of `fired` per STORE.

    `inputs` is (columns, n), `stack` (depth, n), `fired` (n, rules); all are trusted to be as wide
    as the compiler said. Division by zero gives null.
    """
    n = fired.shape[0]
    top = -1
    for step in range(program.shape[0]):
        operation = program[step, 0]
        a = program[step, 1]
        if operation == LOAD:
            top += 1
            for i in range(n):
                stack[top, i] = inputs[a, i]
        elif operation == CONSTANT:
            top += 1
            value = constants[a]
            for i in range(n):
                stack[top, i] = value
        elif operation == STORE:
            for i in range(n):
                fired[i, a] = stack[top, i] == 1.0
            top -= 1
        elif operation == NEGATE:
            for i in range(n):
                stack[top, i] = -stack[top, i]
        elif operation == ABS:
            for i in range(n):
                stack[top, i] = abs(stack[top, i])
        elif operation == NOT:
            for i in range(n):
                stack[top, i] = 1.0 - stack[top, i]
        elif operation == IS_NULL:
            for i in range(n):
                stack[top, i] = 1.0 if np.isnan(stack[top, i]) else 0.0
        elif operation == TRUTH:
            for i in range(n):
                value = stack[top, i]
                if not np.isnan(value):
                    stack[top, i] = 1.0 if value != 0.0 else 0.0
        elif operation == IN:
            for i in range(n):
                value = stack[top, i]
                if not np.isnan(value):
                    found = 0.0
                    for k in range(a, program[step, 2]):
                        if constants[k] == value:
                            found = 1.0
                            break
                    stack[top, i] = found
        else:
            top -= 1
            _binary(operation, stack[top], stack[top + 1])


@njit(types.void(_BYTES, _STARTS, _LENGTHS, _BYTES, _BOUNDS, _OUT), cache=True, nogil=True)
def match_texts(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    known: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Write the number of the known text that each record equals: -1 for none, NaN for null.

    Text k is `known[bounds[k] : bounds[k + 1]]`. Bytes are compared, not hashes: a rule never fires
    by collision.
    """
    for i in range(len(starts)):
        length = lengths[i]
        if length < 0:
            out[i] = np.nan
            continue
        out[i] = -1.0
        start = starts[i]
        for k in range(len(bounds) - 1):
            first = bounds[k]
            if bounds[k + 1] - first != length:
                continue
            same = True
            for j in range(length):
                if data[start + j] != known[first + j]:
                    same = False
                    break
            if same:
                out[i] = float(k)
                break


@njit(
    types.void(_BYTES, _STARTS, _LENGTHS, _BYTES, _STARTS, _LENGTHS, _OUT), cache=True, nogil=True
)
def same_texts(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    other_data: NDArray[np.uint8],
    other_starts: NDArray[np.int64],
    other_lengths: NDArray[np.int32],
    out: NDArray[np.float64],
) -> None:
    """Write 1 where both columns hold the same bytes, 0 where not, NaN where either is null."""
    for i in range(len(starts)):
        length = lengths[i]
        if length < 0 or other_lengths[i] < 0:
            out[i] = np.nan
            continue
        out[i] = 0.0
        if length == other_lengths[i]:
            same = True
            for j in range(length):
                if data[starts[i] + j] != other_data[other_starts[i] + j]:
                    same = False
                    break
            if same:
                out[i] = 1.0


@njit(types.void(_BYTES, _STARTS, _LENGTHS, _BYTES, _OUT), cache=True, nogil=True)
def has_prefix(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    prefix: NDArray[np.uint8],
    out: NDArray[np.float64],
) -> None:
    """Write 1 where a record starts with the bytes of `prefix`, 0 where not, NaN where null."""
    for i in range(len(starts)):
        length = lengths[i]
        if length < 0:
            out[i] = np.nan
            continue
        out[i] = 0.0
        if length >= len(prefix):
            same = True
            for j in range(len(prefix)):
                if data[starts[i] + j] != prefix[j]:
                    same = False
                    break
            if same:
                out[i] = 1.0
