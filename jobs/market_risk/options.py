"""Option prices and Greeks in closed form, vectorised, and full revaluation under shocks.

European options on an asset with a continuous yield (Black and Scholes 1973, Merton 1973; with the
yield equal to the rate it is Black 1976 on a future). Time is in years, volatility and rates are
per year and continuously compounded, as decimals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from schemas.errors import ConfigurationError

__all__ = ["Greeks", "OptionTerms", "greeks", "implied_volatility", "option_price", "revalue"]


@dataclass(frozen=True, slots=True)
class OptionTerms:
    """Terms of n options as columns; `is_call` False is a put."""

    strike: NDArray[np.float64]
    years: NDArray[np.float64]
    rate: NDArray[np.float64]
    dividend_yield: NDArray[np.float64]
    is_call: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Greeks:
    """Price and sensitivities: per unit of spot, of volatility and rate (1.00), a year.

    `theta` is the change of value as a year passes; divide by 365 for a day.
    """

    price: NDArray[np.float64]
    delta: NDArray[np.float64]
    gamma: NDArray[np.float64]
    vega: NDArray[np.float64]
    theta: NDArray[np.float64]
    rho: NDArray[np.float64]


def option_price(
    spot: NDArray[np.float64], volatility: NDArray[np.float64], terms: OptionTerms
) -> NDArray[np.float64]:
    """Return prices; spot and volatility of shape (..., n) broadcast, as scenarios x options.

    At expiry, and at zero volatility, the value is the discounted intrinsic value of the forward.
    """
    sign = np.where(terms.is_call, 1.0, -1.0)
    discount = np.exp(-terms.rate * terms.years)
    carried = spot * np.exp(-terms.dividend_yield * terms.years)
    d1, d2 = _d(spot, volatility, terms)
    result: NDArray[np.float64] = sign * (
        carried * special.ndtr(sign * d1) - terms.strike * discount * special.ndtr(sign * d2)
    )
    return np.maximum(result, 0.0)


def greeks(
    spot: NDArray[np.float64], volatility: NDArray[np.float64], terms: OptionTerms
) -> Greeks:
    """Return price and sensitivities of n options; those of a dead option are 0 but for delta."""
    sign = np.where(terms.is_call, 1.0, -1.0)
    years = np.maximum(terms.years, 0.0)
    root = np.sqrt(years)
    d1, d2 = _d(spot, volatility, terms)
    finite = np.isfinite(d1)
    density = np.where(finite, np.exp(-0.5 * np.where(finite, d1, 0.0) ** 2), 0.0) / np.sqrt(
        2 * np.pi
    )
    discount = np.exp(-terms.rate * years)
    yielded = np.exp(-terms.dividend_yield * years)
    held = terms.strike * discount * special.ndtr(sign * d2)
    delta = sign * yielded * special.ndtr(sign * d1)
    spread = spot * volatility * root
    gamma = np.divide(yielded * density, spread, out=np.zeros_like(density), where=spread > 0)
    vega = spot * yielded * density * root
    decay = np.divide(
        spot * yielded * density * volatility,
        2 * root,
        out=np.zeros_like(density),
        where=root > 0,
    )
    theta = -decay - sign * terms.rate * held + terms.dividend_yield * spot * delta
    rho = sign * years * held
    return Greeks(option_price(spot, volatility, terms), delta, gamma, vega, theta, rho)


def revalue(
    spot: NDArray[np.float64],
    volatility: NDArray[np.float64],
    terms: OptionTerms,
    spot_shock: NDArray[np.float64],
    volatility_shock: NDArray[np.float64] | float = 0.0,
    passed_years: float = 0.0,
) -> NDArray[np.float64]:
    """Return the change of each option's price under each scenario, by full revaluation.

    Args:
        spot: shape (n,).
        volatility: shape (n,).
        terms: of n options.
        spot_shock: relative change of each option's underlying, shape (scenarios, n).
        volatility_shock: absolute change of volatility, a number or shape (scenarios, n).
        passed_years: time that passes in the scenario.
    """
    later = OptionTerms(
        terms.strike,
        np.maximum(terms.years - passed_years, 0.0),
        terms.rate,
        terms.dividend_yield,
        terms.is_call,
    )
    shocked = option_price(
        np.maximum(spot * (1 + spot_shock), 0.0),
        np.maximum(volatility + volatility_shock, 0.0),
        later,
    )
    result: NDArray[np.float64] = shocked - option_price(spot, volatility, terms)
    return result


def implied_volatility(
    price: NDArray[np.float64], spot: NDArray[np.float64], terms: OptionTerms
) -> NDArray[np.float64]:
    """Return the volatility at which the model gives `price`, NaN where none in (0, 5) does.

    Bisection, 60 halvings: slower than Newton, but it cannot leave its bracket.

    Raises:
        ConfigurationError: if the columns have different lengths.
    """
    if not len(price) == len(spot) == len(terms.strike):
        msg = f"implying volatility: expected one length, was {len(price)} and {len(spot)}"
        raise ConfigurationError(msg)
    low, high = np.full(len(price), 1e-6), np.full(len(price), 5.0)
    outside = (price < option_price(spot, low, terms)) | (price > option_price(spot, high, terms))
    for _ in range(60):
        middle = (low + high) / 2
        above = option_price(spot, middle, terms) > price
        high = np.where(above, middle, high)
        low = np.where(above, low, middle)
    result: NDArray[np.float64] = np.where(outside, np.nan, (low + high) / 2)
    return result


def _d(
    spot: NDArray[np.float64], volatility: NDArray[np.float64], terms: OptionTerms
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    years = np.maximum(terms.years, 0.0)
    spread = volatility * np.sqrt(years)
    with np.errstate(divide="ignore", invalid="ignore"):
        forward = np.log(spot / terms.strike) + (terms.rate - terms.dividend_yield) * years
        d1 = forward / spread + spread / 2
    # Without time or volatility only the sign of the forward matters; at the money it is worth 0.
    d1 = np.where(spread > 0, d1, np.where(forward > 0, np.inf, -np.inf))
    return d1, np.where(spread > 0, d1 - spread, d1)
