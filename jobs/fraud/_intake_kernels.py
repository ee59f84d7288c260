"""Compiled checks of the intake: one pass over a batch instead of some forty array operations.

Signatures are fixed, so that nothing is compiled while events wait; read-only and strided types
take any array.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

__all__ = ["judge", "split_kinds"]

_BYTES: Final = types.Array(types.uint8, 1, "A", readonly=True)
_I64: Final = types.Array(types.int64, 1, "A", readonly=True)
_I32: Final = types.Array(types.int32, 1, "A", readonly=True)
_F64: Final = types.Array(types.float64, 1, "A", readonly=True)
_I16: Final = types.Array(types.int16, 1, "A", readonly=True)
_MARKS: Final = types.Array(types.uint8, 1, "C")
_TEXT: Final = (_BYTES, _I64, _I32)
# numba annotates its array type, not this one.
_COUNTS: Final = types.UniTuple(types.int64, 3)  # type: ignore[no-untyped-call]


@njit(_COUNTS(_I16, _MARKS, _MARKS, types.uint8), cache=True, nogil=True)
def split_kinds(
    topics: NDArray[np.int16], kind: NDArray[np.uint8], reason: NDArray[np.uint8], unknown: int
) -> tuple[int, int, int]:
    """Write each row's kind, and `unknown` as the reason of rows of no known topic.

    Returns how many transactions, labels and control records there are.
    """
    transactions = labels = controls = 0
    for row in range(len(topics)):
        topic = topics[row]
        if topic < 0:
            kind[row] = 3
            reason[row] = unknown
            continue
        kind[row] = topic
        if topic == 0:
            transactions += 1
        elif topic == 1:
            labels += 1
        else:
            controls += 1
    return transactions, labels, controls


@njit(
    types.int64(
        _MARKS,
        _MARKS,
        *_TEXT,
        *_TEXT,
        *_TEXT,
        *_TEXT,
        _I64,
        _I64,
        _I64,
        _F64,
        _F64,
        types.boolean,
        _I64,
    ),
    cache=True,
    nogil=True,
)
def judge(
    kind: NDArray[np.uint8],
    reason: NDArray[np.uint8],
    key: NDArray[np.uint8],
    key_starts: NDArray[np.int64],
    key_lengths: NDArray[np.int32],
    event: NDArray[np.uint8],
    event_starts: NDArray[np.int64],
    event_lengths: NDArray[np.int32],
    customer: NDArray[np.uint8],
    customer_starts: NDArray[np.int64],
    customer_lengths: NDArray[np.int32],
    terminal: NDArray[np.uint8],
    terminal_starts: NDArray[np.int64],
    terminal_lengths: NDArray[np.int32],
    event_time: NDArray[np.int64],
    published: NDArray[np.int64],
    amount: NDArray[np.int64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    payments: bool,
    bounds: NDArray[np.int64],
) -> int:
    """Give each event without a reason the first that applies; mark rows with a reason as refused.

    `bounds` is (earliest event time, most ms after publication, most amount, then the reasons in
    the order of the checks). A negative `published` is unknown: nothing lies after it. Without
    `payments` the amount and the location are not looked at. Returns how many rows are refused.
    """
    refused = 0
    for row in range(len(kind)):
        if reason[row] == 0 and kind[row] <= 1:
            found = 0
            same = key_lengths[row] == customer_lengths[row]
            if same:
                for byte in range(key_lengths[row]):
                    if key[key_starts[row] + byte] != customer[customer_starts[row] + byte]:
                        same = False
                        break
            if key_lengths[row] < 0:
                found = 3
            elif min(event_lengths[row], customer_lengths[row], terminal_lengths[row]) <= 0:
                found = 4
            elif not same:
                found = 5
            elif event_time[row] < bounds[0]:
                found = 6
            elif published[row] >= 0 and event_time[row] - bounds[1] > published[row]:
                found = 7
            elif payments:
                if amount[row] < 0:
                    found = 8
                elif amount[row] > bounds[2]:
                    found = 9
                # A comparison with NaN is false, so this also finds what is not a number.
                elif not (abs(latitude[row]) <= 90.0 and abs(longitude[row]) <= 180.0):
                    found = 10
            if found:
                reason[row] = bounds[found]
        if reason[row] != 0:
            kind[row] = 3
            refused += 1
    return refused
