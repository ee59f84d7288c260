"""Options revalued in full under each scenario, and the Greeks of one unit of anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.options import OptionTerms, greeks, revalue
from jobs.market_risk.reference import YEAR_MS, Instrument

__all__ = ["GREEKS", "OptionIndex", "UnitGreeks", "option_pnl", "option_terms", "unit_greeks"]

GREEKS: Final = ("delta", "gamma", "vega", "theta", "rho")
"""Fields of `UnitGreeks`, in order."""

_DAYS: Final = 365
"""Theta is shown for one day of the year that options count (actual/365)."""


@dataclass(frozen=True, slots=True)
class OptionIndex:
    """Which of some instruments are options with terms, and where their underlyings are."""

    options: NDArray[np.int64]
    under: NDArray[np.int64]

    @staticmethod
    def of(terms: Sequence[Instrument], names: Sequence[str]) -> OptionIndex:
        """Look through the instruments once; `names` are theirs, in the same order."""
        options = [index for index, item in enumerate(terms) if item.is_option]
        place = {name: index for index, name in enumerate(names)} if options else {}
        pairs = [
            (index, place[str(terms[index].underlying_id)])
            for index in options
            if str(terms[index].underlying_id) in place
        ]
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return OptionIndex(found[:, 0], found[:, 1])

    def priced(self, spot: NDArray[np.float64]) -> OptionIndex:
        """Return those whose underlying has a price."""
        known = np.isfinite(spot[self.under])
        return self if known.all() else OptionIndex(self.options[known], self.under[known])


@dataclass(frozen=True, slots=True)
class UnitGreeks:
    """Sensitivities of one unit of each instrument, in money of its own currency.

    Attributes:
        delta: money in the underlying that moves as much: the price itself, of what is no option.
        gamma: change of `delta` as the underlying rises by 1 %.
        vega: gain as volatility rises by one point (0.01).
        theta: gain as a day passes.
        rho: gain as the rate rises by one point (0.01).
    """

    delta: NDArray[np.float64]
    gamma: NDArray[np.float64]
    vega: NDArray[np.float64]
    theta: NDArray[np.float64]
    rho: NDArray[np.float64]


def unit_greeks(
    terms: Sequence[Instrument], index: OptionIndex, spot: NDArray[np.float64], now_ms: int
) -> UnitGreeks:
    """Return the Greeks of one unit of each instrument; unknown prices give zeros.

    Arguments as of `option_pnl`. An option without terms or without a price of its underlying
    counts as its own underlying, as it does for VaR.
    """
    rows = np.zeros((5, len(terms)))
    rows[0] = np.where(np.isfinite(spot), spot, 0.0)
    found = index.priced(spot)
    if len(found.options):
        chosen = [terms[place] for place in found.options.tolist()]
        at = spot[found.under]
        volatility = np.array([item.volatility for item in chosen])
        unit = greeks(at, volatility, option_terms(chosen, now_ms))
        rows[:, found.options] = (
            unit.delta * at,
            unit.gamma * at * at / 100,
            unit.vega / 100,
            unit.theta / _DAYS,
            unit.rho / 100,
        )
    return UnitGreeks(*rows)


def option_pnl(
    terms: Sequence[Instrument],
    index: OptionIndex,
    spot: NDArray[np.float64],
    shocks: NDArray[np.float64],
    now_ms: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return which instruments are options that can be revalued, and the P&L of one unit of each.

    The P&L is in the option's own currency, of shape (scenarios, options), at the shocked price of
    the underlying. An option without terms or without a price of its underlying is not among them:
    it moves by its own shock, as all else does.

    Args:
        terms: of each instrument.
        index: of the same instruments.
        spot: price of one unit, NaN unknown, shape (instruments,).
        shocks: relative price changes, shape (scenarios, instruments).
        now_ms: event time, for the time to expiry.
    """
    found = index.priced(spot)
    if not len(found.options):
        return found.options, np.empty((len(shocks), 0))
    chosen = [terms[place] for place in found.options.tolist()]
    volatility = np.array([item.volatility for item in chosen])
    at, moved = spot[found.under], shocks[:, found.under]
    return found.options, revalue(at, volatility, option_terms(chosen, now_ms), moved)


def option_terms(options: Sequence[Instrument], now_ms: int) -> OptionTerms:
    """Return the terms of options as columns at a moment; an expired one has 0 years."""
    left = [max((item.expiry_ms or now_ms) - now_ms, 0) / YEAR_MS for item in options]
    return OptionTerms(
        np.array([item.strike or 0.0 for item in options]),
        np.array(left),
        np.array([item.rate for item in options]),
        np.array([item.dividend_yield for item in options]),
        np.array([item.right == "call" for item in options], np.bool_),
    )
