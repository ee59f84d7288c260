"""Values and exposure of positions and groups of them, in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.market import NO_PRICE
from jobs.market_risk.scaling import mulshift
from schemas.errors import ConfigurationError

__all__ = [
    "BASE_SCALE",
    "RATE_SCALE",
    "Exposures",
    "exposures",
    "leverage",
    "to_base",
    "values_in_base",
    "warm",
]

RATE_SCALE: Final = 8
"""Decimal places of an FX rate: the price of one unit of a currency in the base currency."""

BASE_SCALE: Final = 4
"""Decimal places of base-currency money: 2**63 of them are 922 million million units."""


# A product of 64 bits or more has more decimal places than this, or is beyond `_MOST_MONEY`.
_COARSE_SCALE: Final = 6
_MOST_MONEY: Final = 1e12


@dataclass(frozen=True, slots=True)
class Exposures:
    """Exposure of each group in base-currency money, both sides as positive numbers."""

    long: NDArray[np.int64]
    short: NDArray[np.int64]

    @property
    def gross(self) -> NDArray[np.int64]:
        """Return what could be lost if hedges failed."""
        return self.long + self.short

    @property
    def net(self) -> NDArray[np.int64]:
        """Return what moves with the market."""
        return self.long - self.short


def to_base(
    money: NDArray[np.int64],
    money_scale: NDArray[np.int64],
    rate: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return money in the base currency at `BASE_SCALE`, rounded once, halves away from zero.

    Args:
        money: amounts, each at its own scale.
        money_scale: decimal places of each amount, 0 to 36 - (RATE_SCALE - BASE_SCALE).
        rate: price of one unit in the base currency at `RATE_SCALE`.

    Raises:
        ConfigurationError: if a scale is outside its range or a rate is not positive.
    """
    if len(money) == 0:
        return np.empty(0, np.int64)
    limit = 36 - (RATE_SCALE - BASE_SCALE)
    if money_scale.min() < 0 or money_scale.max() > limit or rate.min() <= 0:
        msg = (
            f"converting money: expected scales of 0 to {limit} and positive rates, "
            f"was {int(money_scale.max())} and {int(rate.min())}"
        )
        raise ConfigurationError(msg)
    result = np.empty(len(money), np.int64)
    shift = (money_scale + RATE_SCALE - BASE_SCALE).astype(np.int64)
    _convert(
        np.array(money, np.int64),
        shift,
        np.array(rate, np.int64),
        result,
    )
    return result


def values_in_base(
    quantity: NDArray[np.int64],
    twice_price: NDArray[np.int64],
    multiplier: NDArray[np.int64],
    money_scale: NDArray[np.int64],
    rate: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the value of positions in the base currency, and where it is known (elsewhere 0).

    The product of quantity, price and multiplier is exact and rounded once, halves away from zero,
    as long as it fits 64 bits; beyond, it is first rounded to `_COARSE_SCALE` decimal places. It is
    not known for a price that is not (`NO_PRICE`), nor beyond some 10**12 units of money.

    Args:
        quantity: signed, scaled.
        twice_price: twice the price, scaled.
        multiplier: of the instrument.
        money_scale: decimal places of quantity times price, as in `to_base`.
        rate: as in `to_base`.
    """
    value, known = np.zeros(len(quantity), np.int64), np.zeros(len(quantity), np.bool_)
    _value(
        np.array(quantity, np.int64),
        np.array(twice_price, np.int64),
        np.array(multiplier, np.int64),
        np.array(money_scale, np.int64),
        np.array(rate, np.int64),
        value,
        known,
    )
    return value, known


def exposures(value: NDArray[np.int64], group: NDArray[np.int32], groups: int) -> Exposures:
    """Return the exposure of each of `groups` groups from signed market values in one currency."""
    long = np.zeros(groups, np.int64)
    short = np.zeros(groups, np.int64)
    np.add.at(long, group, np.maximum(value, 0))
    np.add.at(short, group, np.maximum(-value, 0))
    return Exposures(long, short)


def leverage(gross: NDArray[np.int64], equity: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return gross exposure over equity; infinite where there is exposure without equity."""
    ratio = np.full(len(gross), np.inf)
    np.divide(gross, equity, out=ratio, where=equity > 0)
    ratio[gross == 0] = 0.0
    return ratio


def warm() -> None:
    """Compile the kernels of this module, so that no event waits for the compiler."""
    one = np.ones(1, np.int64)
    to_base(one, one, one)
    values_in_base(one, one, one, one, one)


@nb.njit("void(i8[::1], i8[::1], i8[::1], i8[::1])", cache=True, nogil=True)
def _convert(
    money: NDArray[np.int64],
    places: NDArray[np.int64],
    rate: NDArray[np.int64],
    result: NDArray[np.int64],
) -> None:
    for index in range(len(money)):
        result[index] = mulshift(money[index], rate[index], places[index])


@nb.njit(
    "void(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], b1[::1])", cache=True, nogil=True
)
def _value(
    quantity: NDArray[np.int64],
    twice_price: NDArray[np.int64],
    multiplier: NDArray[np.int64],
    money_scale: NDArray[np.int64],
    rate: NDArray[np.int64],
    value: NDArray[np.int64],
    known: NDArray[np.bool_],
) -> None:
    for index in range(len(quantity)):
        if twice_price[index] == NO_PRICE:
            continue
        places = money_scale[index]
        unit = float(twice_price[index]) * float(multiplier[index])
        size = abs(unit * float(quantity[index]))
        if abs(unit) >= 9.0e18 or size / 10.0**places > _MOST_MONEY:
            continue
        doubled = twice_price[index] * multiplier[index]
        if size < 9.0e18:
            doubled *= quantity[index]
        else:
            doubled = mulshift(doubled, quantity[index], places - _COARSE_SCALE)
            places = _COARSE_SCALE
        # Five times twice the value with one more decimal place is the value.
        value[index] = mulshift(doubled, 5 * rate[index], places + 1 + RATE_SCALE - BASE_SCALE)
        known[index] = True
