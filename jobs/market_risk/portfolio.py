"""Value at risk of a portfolio and what each position adds to it.

P&L matrices have shape (scenarios, positions), in one currency, oldest scenario first. Components
are Euler's: they sum to the total exactly, by every method, because each is the same linear
functional applied to one position's P&L. Marginal VaR is a component divided by its exposure: the
change of VaR for one more unit of money in the position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from jobs.market_risk.value_at_risk import (
    AGE_DECAY,
    VOLATILITY_DECAY,
    Method,
    Quantile,
    TailRisk,
    age_weights,
    default_quantile,
    ewma_variance,
    tail_risk,
    tail_scenarios,
)
from schemas.errors import ConfigurationError

__all__ = [
    "PortfolioRisk",
    "ewma_covariance",
    "fast_tail_risk",
    "monte_carlo",
    "over_horizon",
    "portfolio_risk",
]


@dataclass(frozen=True, slots=True)
class PortfolioRisk:
    """Risk of the sum of all positions, and each position's share (they sum to it)."""

    total: TailRisk
    component_var: NDArray[np.float64]
    component_es: NDArray[np.float64]


def portfolio_risk(
    pnl: NDArray[np.float64],
    level: float,
    method: Method = "plain",
    *,
    decay: float | None = None,
    quantile: Quantile | None = None,
) -> PortfolioRisk:
    """Return VaR, ES and their components; arguments as in `tail_risk`, `pnl` of shape (s, p).

    Volatility weighting rescales by the volatility of the whole portfolio, so that the components
    of a rescaled day stay in proportion.

    Raises:
        ConfigurationError: as `tail_risk` does.
    """
    series = pnl.sum(axis=1)
    total = tail_risk(series, level, method, decay=decay, quantile=quantile)
    if method in ("ewma", "normal"):
        return _parametric(pnl, series, total, decay)
    weights = np.full(len(series), 1 / len(series))
    if method == "age":
        weights = age_weights(len(series), AGE_DECAY if decay is None else decay)
    elif method == "volatility":
        sigma = np.sqrt(ewma_variance(series, VOLATILITY_DECAY if decay is None else decay))
        then = sigma[:-1]
        ratio = np.divide(sigma[-1], then, out=np.ones_like(then), where=then > 0)
        pnl = pnl * ratio[:, None]
        series = series * ratio
    order, at_quantile, in_tail = tail_scenarios(
        series, weights, level, quantile or default_quantile(method)
    )
    worst = np.flatnonzero((at_quantile != 0) | (in_tail != 0))
    chosen = pnl[order[worst]]
    return PortfolioRisk(total, -(at_quantile[worst] @ chosen), -(in_tail[worst] @ chosen))


def fast_tail_risk(
    pnl: NDArray[np.float64], levels: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return plain VaR (linear quantile) and ES of many portfolios at once.

    Args:
        pnl: shape (scenarios, portfolios).
        levels: confidences.

    Returns:
        VaR and ES, each of shape (levels, portfolios).
    """
    count = len(pnl)
    # Only the tail is needed in order: a partition is linear, a sort is not.
    deepest = min(count, int(np.ceil((1 - min(levels)) * count)) + 2)
    by_portfolio = np.ascontiguousarray(pnl.T)
    tail = np.sort(np.partition(by_portfolio, deepest - 1, axis=1)[:, :deepest], axis=1)
    var = np.empty((len(levels), pnl.shape[1]))
    shortfall = np.empty_like(var)
    sums = np.cumsum(tail, axis=1)
    for row, level in enumerate(levels):
        place = (1 - level) * (count - 1)
        below = int(place + 1e-9)
        above = min(below + 1, deepest - 1)
        var[row] = -(tail[:, below] + (place - below) * (tail[:, above] - tail[:, below]))
        mass = (1 - level) * count
        whole = int(mass + 1e-9)
        full = sums[:, whole - 1] if whole else 0.0
        shortfall[row] = -(full + (mass - whole) * tail[:, min(whole, deepest - 1)]) / mass
    return var, shortfall


def ewma_covariance(
    returns: NDArray[np.float64], decay: float = VOLATILITY_DECAY
) -> NDArray[np.float64]:
    """Return the zero-mean EWMA covariance forecast for the next period, shape (p, p).

    Started at the sample's mean of squares, as `ewma_variance` is, so that both agree.
    """
    count = len(returns)
    weights = (1 - decay) * np.power(decay, np.arange(count - 1, -1, -1, dtype=np.float64))
    start = returns.T @ returns / count
    covariance: NDArray[np.float64] = (returns.T * weights) @ returns + decay**count * start
    return covariance


def monte_carlo(
    covariance: NDArray[np.float64],
    scenarios: int,
    seed: int,
    *,
    distribution: Literal["normal", "student"] = "normal",
    degrees_of_freedom: float = 5.0,
) -> NDArray[np.float64]:
    """Return simulated returns of shape (scenarios, p) with this covariance and zero mean.

    Scenarios come in antithetic pairs. `student` draws one chi-square for a scenario, so that
    instruments crash together, scaled so that the covariance is still the one given.

    Raises:
        ConfigurationError: if the covariance is not positive semi-definite, or a number is out of
            range.
    """
    values, vectors = np.linalg.eigh(covariance)
    if values.min() < -1e-8 * max(values.max(), 1e-300):
        msg = f"simulating returns: expected no negative eigenvalue, was {values.min()!r}"
        raise ConfigurationError(msg)
    if scenarios < 2 or degrees_of_freedom <= 2:
        msg = (
            "simulating returns: expected two or more scenarios and over 2 degrees of freedom, "
            f"was {scenarios!r} and {degrees_of_freedom!r}"
        )
        raise ConfigurationError(msg)
    random = np.random.default_rng(seed)
    half = random.standard_normal(((scenarios + 1) // 2, len(values)))
    draws = np.concatenate([half, -half])[:scenarios]
    if distribution == "student":
        mixing = random.chisquare(degrees_of_freedom, len(half)) / (degrees_of_freedom - 2)
        draws /= np.sqrt(np.concatenate([mixing, mixing])[:scenarios])[:, None]
    result: NDArray[np.float64] = draws @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return result


def over_horizon(
    risk: PortfolioRisk, horizon_days: float, liquidity_days: NDArray[np.float64] | None = None
) -> PortfolioRisk:
    """Scale one-day risk to a horizon by the square root of time.

    With `liquidity_days` (shape (p,), the days it takes to leave each position) the horizon of a
    position is the longer of the two, and the total is the sum of its scaled components.
    """
    if liquidity_days is None:
        factor: NDArray[np.float64] = np.full(len(risk.component_var), np.sqrt(horizon_days))
    else:
        factor = np.sqrt(np.maximum(liquidity_days, horizon_days))
    var, shortfall = risk.component_var * factor, risk.component_es * factor
    scale = float(np.sqrt(horizon_days))
    old = risk.total
    total = replace(
        old,
        value_at_risk=old.value_at_risk * scale if liquidity_days is None else float(var.sum()),
        expected_shortfall=(
            old.expected_shortfall * scale if liquidity_days is None else float(shortfall.sum())
        ),
        tail_mean=None if old.tail_mean is None else old.tail_mean * scale,
    )
    return PortfolioRisk(total, var, shortfall)


def _parametric(
    pnl: NDArray[np.float64],
    series: NDArray[np.float64],
    total: TailRisk,
    decay: float | None,
) -> PortfolioRisk:
    if total.method == "ewma":
        decay = VOLATILITY_DECAY if decay is None else decay
        count = len(series)
        weights = (1 - decay) * np.power(decay, np.arange(count - 1, -1, -1, dtype=np.float64))
        covariances = pnl.T @ (series * (weights + decay**count / count))
        means = np.zeros(pnl.shape[1])
    else:
        means = pnl.mean(axis=0)
        covariances = (pnl - means).T @ (series - series.mean()) / (len(series) - 1)
    sigma = total.volatility or 0.0
    share = covariances / sigma if sigma > 0 else np.zeros_like(covariances)
    z = float(stats.norm.ppf(total.level))
    density = float(stats.norm.pdf(z)) / (1 - total.level)
    return PortfolioRisk(total, z * share - means, density * share - means)
