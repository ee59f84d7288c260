"""Gross, net and leveraged exposure of groups of positions, in one currency, in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.scaling import muldiv
from schemas.errors import ConfigurationError

__all__ = ["BASE_SCALE", "RATE_SCALE", "Exposures", "exposures", "leverage", "to_base", "warm"]

RATE_SCALE: Final = 8
"""Decimal places of an FX rate: the price of one unit of a currency in the base currency."""

BASE_SCALE: Final = 4
"""Decimal places of base-currency money: 2**63 of them are 922 million million units."""


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
        money_scale: decimal places of each amount, 0 to 18 - (RATE_SCALE - BASE_SCALE).
        rate: price of one unit in the base currency at `RATE_SCALE`.

    Raises:
        ConfigurationError: if a scale is outside its range or a rate is not positive.
    """
    if len(money) == 0:
        return np.empty(0, np.int64)
    limit = 18 - (RATE_SCALE - BASE_SCALE)
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
        np.power(np.int64(10), shift),
        np.array(rate, np.int64),
        result,
    )
    return result


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


@nb.njit("void(i8[::1], i8[::1], i8[::1], i8[::1])", cache=True, nogil=True)
def _convert(
    money: NDArray[np.int64],
    divisor: NDArray[np.int64],
    rate: NDArray[np.int64],
    result: NDArray[np.int64],
) -> None:
    for index in range(len(money)):
        result[index] = muldiv(money[index], rate[index], divisor[index])
