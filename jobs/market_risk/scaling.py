"""Decimal numbers as scaled integers: exact sums of prices, sizes and money in any order."""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError

__all__ = [
    "MAX_SCALE",
    "AmountOverflowError",
    "infer_scale",
    "muldiv",
    "mulshift",
    "product_fits",
    "rescaled",
    "to_scaled",
    "unscale",
    "warm",
]

MAX_SCALE: Final = 12
"""Decimal places searched: venues quote up to 8; beyond 12 a float64 of 1,000 has none."""

_WORD_PLACES: Final = 18

_SAFE: Final = (
    9.0e18  # just below 2**63 = 9.22e18, so that a rounding float check errs to the safe side
)


class AmountOverflowError(RecordError):
    """An amount does not fit 64-bit integers at its scale; declare fewer decimal places."""


def infer_scale(values: NDArray[np.float64], max_scale: int = MAX_SCALE) -> int:
    """Return the smallest number of decimal places that holds every value of `values`.

    A value holds at a scale when the nearest decimal of that scale is within 4 units in the last
    place, so that 0.00031099999999999997 counts as 0.000311. NaN is ignored. When no scale up to
    `max_scale` holds them all (prices that were averaged, say), the largest scale at which the sum
    of the absolute values still fits 64 bits is returned and values round to it.
    """
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return 0
    tolerance = 4 * np.spacing(np.abs(finite))
    for scale in range(max_scale + 1):
        factor = 10.0**scale
        if np.all(np.abs(np.round(finite * factor) / factor - finite) <= tolerance):
            return scale
    total = float(np.sum(np.abs(finite)))
    scale = max_scale
    while scale and total * 10.0**scale > _SAFE:
        scale -= 1
    return scale


def to_scaled(values: NDArray[np.float64], scale: int) -> NDArray[np.int64]:
    """Return `round(value * 10**scale)` as int64, halves to even; NaN must have been removed.

    Raises:
        AmountOverflowError: if a value does not fit 64 bits at that scale.
    """
    scaled = np.round(values * 10.0**scale)
    if len(scaled) and not float(np.max(np.abs(scaled))) < _SAFE:
        worst = float(values[int(np.argmax(np.abs(scaled)))])
        msg = f"scaling amounts: {worst!r} with {scale} decimal places exceeds 64 bits"
        raise AmountOverflowError(msg)
    result: NDArray[np.int64] = scaled.astype(np.int64)
    return result


def unscale(values: NDArray[np.int64], scale: int) -> NDArray[np.float64]:
    """Return `value / 10**scale`, the float64 nearest to the decimal (exact below 2**53)."""
    result: NDArray[np.float64] = values / 10.0**scale
    return result


def rescaled(
    values: NDArray[np.int64], scale: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return integers at other scales, and where they are the same numbers; elsewhere 0.

    A number that has more decimal places than wanted, or does not fit 64 bits there, is not.

    Args:
        values: integers, each at its own scale.
        scale: decimal places of each, within `_WORD_PLACES` of what is wanted.
        wanted: decimal places to return each at.
    """
    if np.array_equal(scale, wanted):
        return values, np.ones(len(values), np.bool_)
    more = np.power(10, np.clip(wanted - scale, 0, _WORD_PLACES), dtype=np.int64)
    fewer = np.power(10, np.clip(scale - wanted, 0, _WORD_PLACES), dtype=np.int64)
    exact = (values % fewer == 0) & (np.abs(values) <= np.iinfo(np.int64).max // more)
    return np.where(exact, values // fewer * np.where(exact, more, 0), 0), exact


@nb.njit("b1(i8, i8)", cache=True, nogil=True, inline="never")
def product_fits(a: int, b: int) -> bool:
    """Return whether `a * b` fits a signed 64-bit integer with a small margin."""
    return abs(float(a) * float(b)) < 9.0e18


@nb.njit("UniTuple(u8, 2)(i8, i8, i8)", cache=True, nogil=True, inline="never")
def _product_over(a: int, b: int, c: int) -> tuple[np.uint64, np.uint64]:
    # Quotient and remainder of abs(a * b) / c. The product is held in 128 bits as two unsigned
    # words; the division is the schoolbook one, bit by bit, used only when the product does not fit
    # one word.
    ua, ub, uc = np.uint64(abs(a)), np.uint64(abs(b)), np.uint64(c)
    if float(abs(a)) * float(abs(b)) < 9.0e18:
        product = ua * ub
        quotient = product // uc
        return quotient, product - quotient * uc
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a_low, a_high, b_low, b_high = ua & mask, ua >> half, ub & mask, ub >> half
    low = a_low * b_low
    middle = a_high * b_low + (low >> half)
    middle_low = (middle & mask) + a_low * b_high
    high = a_high * b_high + (middle >> half) + (middle_low >> half)
    low = (middle_low << half) | (low & mask)
    quotient = np.uint64(0)
    remainder = np.uint64(0)
    one = np.uint64(1)
    for bit in range(127, -1, -1):
        word = high if bit >= 64 else low
        remainder = (remainder << one) | ((word >> np.uint64(bit % 64)) & one)
        quotient = quotient << one
        if remainder >= uc:
            remainder -= uc
            quotient |= one
    return quotient, remainder


@nb.njit("i8(i8, i8, i8)", cache=True, nogil=True, inline="never")
def muldiv(a: int, b: int, c: int) -> int:
    """Return `round(a * b / c)` exactly, halves away from zero, without 64-bit overflow inside.

    `c` is positive and the result must fit 64 bits, as it does when `abs(b) <= c`.
    """
    quotient, remainder = _product_over(a, b, c)
    if remainder >= np.uint64(c) - remainder:
        quotient += np.uint64(1)
    result = np.int64(quotient)
    return int(-result if (a < 0) != (b < 0) else result)


@nb.njit("i8(i8, i8, i8)", cache=True, nogil=True, inline="never")
def mulshift(a: int, b: int, places: int) -> int:
    """Return `round(a * b / 10**places)`, places from 0 to 36, as `muldiv` does.

    The result must fit 64 bits.
    """
    if places <= _WORD_PLACES:
        return muldiv(a, b, 10**places)
    # The whole part of the quotient by 10**18 is enough: what it leaves out is less than one, and
    # half of the power that is left is a whole number.
    quotient, _ = _product_over(a, b, 10**_WORD_PLACES)
    left = np.uint64(10 ** (places - _WORD_PLACES))
    result = np.int64((quotient + left // np.uint64(2)) // left)
    return int(-result if (a < 0) != (b < 0) else result)


def warm() -> None:
    """Compile the kernels of this module, so that no event waits for the compiler."""
    product_fits(1, 1)
    muldiv(1, 1, 1)
    mulshift(1, 1, 1)
