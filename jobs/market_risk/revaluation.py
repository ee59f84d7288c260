"""What one unit of each option gains or loses under each scenario, revalued in full."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.options import OptionTerms, revalue
from jobs.market_risk.reference import YEAR_MS, Instrument

__all__ = ["option_pnl", "option_terms"]


def option_pnl(
    terms: Sequence[Instrument],
    names: Sequence[str],
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
        names: of each instrument, in the same order.
        spot: price of one unit, NaN unknown, shape (instruments,).
        shocks: relative price changes, shape (scenarios, instruments).
        now_ms: event time, for the time to expiry.
    """
    found = [index for index, item in enumerate(terms) if item.is_option]
    if not found:
        return np.empty(0, np.int64), np.empty((len(shocks), 0))
    place = {name: index for index, name in enumerate(names)}
    found = [
        index
        for index in found
        if np.isfinite(spot[place.get(str(terms[index].underlying_id), index)])
        and str(terms[index].underlying_id) in place
    ]
    chosen = [terms[index] for index in found]
    under = np.array([place[str(item.underlying_id)] for item in chosen], np.int64)
    volatility = np.array([item.volatility for item in chosen])
    pnl = revalue(spot[under], volatility, option_terms(chosen, now_ms), shocks[:, under])
    return np.array(found, np.int64), pnl


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
