"""VaR and expected shortfall of many portfolios at once, by every method, for the stream.

The same numbers as `value_at_risk.tail_risk` gives one portfolio at a time (a test holds them to
it), with everything that depends on the number of scenarios only computed once: weights by age, the
matrix that makes EWMA forecasts out of squares, the draws of Monte Carlo.

==========  ======================================================================================
plain       historical simulation, every scenario alike
age         weights fall by `AGE_DECAY` a scenario (Boudoukh, Richardson and Whitelaw 1998)
volatility  P&L rescaled to the volatility of now (Hull and White 1998)
ewma        normal, zero mean, EWMA variance of the portfolio's P&L (RiskMetrics)
montecarlo  normal scenarios with the EWMA covariance of all instruments; options revalued in full
liquidity   plain, each instrument moving over its own liquidity horizon by the root of time
==========  ======================================================================================

Every method needs scenarios in order of time, oldest first; P&L is positive for a gain, VaR and
shortfall for a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from jobs.market_risk.portfolio import fast_tail_risk
from jobs.market_risk.value_at_risk import VOLATILITY_DECAY, age_weights

__all__ = ["METHODS", "MethodKit", "StreamMethod", "method_risk"]

StreamMethod = Literal["plain", "age", "volatility", "ewma", "montecarlo", "liquidity"]
"""Name of a method, as in the rows and settings."""

METHODS: Final[tuple[StreamMethod, ...]] = get_args(StreamMethod)
"""Every method, in the order of the table."""

_SEED: Final = 20_200_101


@dataclass(frozen=True, slots=True)
class MethodKit:
    """What the methods need for n scenarios beside the P&L.

    Attributes:
        age: weights that sum to 1, oldest first, shape (n,).
        forecasts: shape (n + 1, n): times the squares of P&L it is the EWMA variance forecast for
            each scenario and, last, for the next period, started at the mean square.
        draws: shape (simulated, n): times the scenarios it is normal draws with their EWMA
            covariance, in antithetic pairs.
    """

    age: NDArray[np.float64]
    forecasts: NDArray[np.float64]
    draws: NDArray[np.float64]

    @staticmethod
    def of(scenarios: int, simulated: int, decay: float = VOLATILITY_DECAY) -> MethodKit:
        """Return the kit for a number of historical scenarios; draws depend on nothing else."""
        later = np.arange(scenarios + 1)[:, None] - 1 - np.arange(scenarios)[None, :]
        kernel = np.where(later >= 0, (1 - decay) * np.power(decay, np.maximum(later, 0)), 0.0)
        forecasts = (
            kernel + (np.power(decay, np.arange(scenarios + 1)) / max(scenarios, 1))[:, None]
        )
        half = np.random.default_rng(_SEED).standard_normal(((simulated + 1) // 2, scenarios))
        draws = np.concatenate([half, -half])[:simulated] * np.sqrt(forecasts[-1])
        return MethodKit(age_weights(scenarios), forecasts, draws)


def method_risk(
    method: StreamMethod,
    kit: MethodKit,
    levels: tuple[float, ...],
    pnl: NDArray[np.float64],
    simulated: NDArray[np.float64],
    liquid: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return VaR and shortfall by one method, each of shape (levels, portfolios).

    Args:
        method: which one.
        kit: made for as many scenarios as `pnl` has, two or more.
        levels: confidences.
        pnl: shape (scenarios, portfolios), oldest first.
        simulated: P&L of the Monte Carlo scenarios, shape (simulated, portfolios).
        liquid: P&L over each instrument's own horizon, shaped as `pnl`.
    """
    if method == "age":
        return _weighted(pnl, kit.age, levels)
    if method == "ewma":
        sigma = np.sqrt(kit.forecasts[-1] @ np.square(pnl))
        z = stats.norm.ppf(levels)
        density = stats.norm.pdf(z) / (1 - np.array(levels))
        return np.outer(z, sigma), np.outer(density, sigma)
    if method == "volatility":
        sigma = np.sqrt(kit.forecasts @ np.square(pnl))
        then = sigma[:-1]
        return fast_tail_risk(
            pnl * np.divide(sigma[-1], then, out=np.ones_like(then), where=then > 0), levels
        )
    chosen = {"plain": pnl, "montecarlo": simulated, "liquidity": liquid}[method]
    return fast_tail_risk(chosen, levels)


def _weighted(
    pnl: NDArray[np.float64], weights: NDArray[np.float64], levels: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    by_portfolio = np.ascontiguousarray(pnl.T)
    order = np.argsort(by_portfolio, axis=1, kind="stable")
    ordered = np.take_along_axis(by_portfolio, order, axis=1)
    weight = weights[order]
    cumulative = np.cumsum(weight, axis=1)
    places = cumulative - weight / 2
    rows = np.arange(len(ordered))
    last = ordered.shape[1] - 1
    var = np.empty((len(levels), len(ordered)))
    shortfall = np.empty_like(var)
    for row, level in enumerate(levels):
        tail = 1 - level
        above = np.sum(places < tail, axis=1)
        high, low = np.minimum(above, last), np.clip(above - 1, 0, last)
        gap = places[rows, high] - places[rows, low]
        # Outside the first and the last place there is nothing to interpolate with.
        share = np.divide(tail - places[rows, low], gap, out=np.ones(len(gap)), where=gap > 0)
        var[row] = -(ordered[rows, low] + share * (ordered[rows, high] - ordered[rows, low]))
        inside = np.minimum(weight, np.maximum(tail - (cumulative - weight), 0.0))
        shortfall[row] = -np.einsum("ps,ps->p", inside, ordered) / inside.sum(axis=1)
    return var, shortfall
