"""Value at risk and expected shortfall of one series of scenario P&L.

Conventions, the same everywhere: P&L is positive for a gain; VaR and ES are positive for a loss; a
level is a confidence, 0.95 for the worst 5%; scenarios are in order of time, the last is the
newest.

===========  =======================================================================================
method       what the newest observation is compared with
===========  =======================================================================================
plain        the empirical distribution, every observation alike
age          Boudoukh, Richardson and Whitelaw 1998: weight `decay ** age`, normalised
volatility   Hull and White 1998: each observation times (volatility now / volatility then), EWMA
ewma         RiskMetrics: normal, zero mean, EWMA variance
normal       normal with the sample's mean and standard deviation
===========  =======================================================================================

Quantile conventions, for weights w sorted by P&L with cumulative sum W, the value of observation k
holding at probability: `linear` (W - w) / (1 - w_last), the default of NumPy for equal weights;
`midpoint` W - w/2, Hazen's, that of the age-weighting paper; `step` the smallest observation with
W >= 1 - level, no interpolation. Expected shortfall is always the exact mean of the worst
`1 - level` of probability (Acerbi and Tasche 2002), so it is coherent and ES >= step VaR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from schemas.errors import ConfigurationError

__all__ = [
    "AGE_DECAY",
    "VOLATILITY_DECAY",
    "Method",
    "Quantile",
    "TailRisk",
    "age_weights",
    "default_quantile",
    "ewma_variance",
    "rescale_to_current_volatility",
    "tail_risk",
    "tail_scenarios",
]

Method = Literal["plain", "age", "volatility", "ewma", "normal"]
Quantile = Literal["linear", "midpoint", "step"]

AGE_DECAY: Final = 0.98
"""Decay of the age weights; the paper's examples use 0.97 and 0.99."""

VOLATILITY_DECAY: Final = 0.94
"""RiskMetrics' daily decay."""


@dataclass(frozen=True, slots=True)
class TailRisk:
    """VaR and ES of one method at one level, in the unit of the P&L given.

    `tail_mean` is the plain mean of the observations at or beyond VaR, which many desks call ES
    (None for parametric methods); `volatility` is the current one-period forecast where the method
    has one.
    """

    method: Method
    level: float
    value_at_risk: float
    expected_shortfall: float
    tail_mean: float | None
    volatility: float | None
    observations: int


def age_weights(observations: int, decay: float = AGE_DECAY) -> NDArray[np.float64]:
    """Return weights that sum to 1, oldest first: the newest has (1 - decay) / (1 - decay**n).

    Raises:
        ConfigurationError: if `decay` is outside (0, 1].
    """
    _check_decay(decay)
    weights = np.power(decay, np.arange(observations - 1, -1, -1, dtype=np.float64))
    total: NDArray[np.float64] = weights / weights.sum()
    return total


def ewma_variance(
    pnl: NDArray[np.float64], decay: float = VOLATILITY_DECAY, start: float | None = None
) -> NDArray[np.float64]:
    """Return the zero-mean EWMA variance forecasts, length n + 1, for the columns of `pnl`.

    Element t is the forecast for observation t made before it was seen; the last one is the
    forecast for the next period: `v[t + 1] = decay * v[t] + (1 - decay) * pnl[t] ** 2`. `v[0]` is
    `start`, by default the mean square of the sample, so that no early observation is rescaled by
    an accident.

    Raises:
        ConfigurationError: if `decay` is outside (0, 1].
    """
    _check_decay(decay)
    squares = np.square(pnl)
    variance = np.empty((len(pnl) + 1, *pnl.shape[1:]))
    variance[0] = squares.mean(axis=0) if start is None else start
    for index in range(len(pnl)):
        variance[index + 1] = decay * variance[index] + (1 - decay) * squares[index]
    return variance


def rescale_to_current_volatility(
    pnl: NDArray[np.float64], decay: float = VOLATILITY_DECAY
) -> NDArray[np.float64]:
    """Return `pnl[t] * sigma_now / sigma[t]` per column (Hull and White); quiet zeros stay zero."""
    sigma = np.sqrt(ewma_variance(pnl, decay))
    ratio = np.divide(sigma[-1], sigma[:-1], out=np.ones_like(pnl), where=sigma[:-1] > 0)
    result: NDArray[np.float64] = pnl * ratio
    return result


def default_quantile(method: Method) -> Quantile:
    """Return the convention a method was published with: midpoint for age weights, else linear."""
    return "midpoint" if method == "age" else "linear"


def tail_risk(
    pnl: NDArray[np.float64],
    level: float,
    method: Method = "plain",
    *,
    decay: float | None = None,
    quantile: Quantile | None = None,
) -> TailRisk:
    """Return VaR and ES of `pnl`, one number a period, oldest first.

    Args:
        pnl: gains (positive) and losses (negative) of length n >= 2, finite.
        level: confidence in (0.5, 1).
        method: see the module's table.
        decay: of age weights or EWMA; by default 0.98 and 0.94.
        quantile: convention of the empirical quantile, by default the method's own.

    Raises:
        ConfigurationError: if the method is unknown, the level is outside its range, or there are
            fewer than two finite observations.
    """
    if method not in get_args(Method):
        msg = f"computing VaR: expected a method of {', '.join(get_args(Method))}, was {method!r}"
        raise ConfigurationError(msg)
    if not 0.5 < level < 1:
        msg = f"computing VaR: expected a level between 0.5 and 1, was {level!r}"
        raise ConfigurationError(msg)
    if len(pnl) < 2 or not np.all(np.isfinite(pnl)):
        msg = f"computing VaR: expected two or more finite returns, was {len(pnl)} observation(s)"
        raise ConfigurationError(msg)
    if method in ("ewma", "normal"):
        return _parametric(pnl, level, method, decay)
    volatility: float | None = None
    weights = np.full(len(pnl), 1 / len(pnl))
    if method == "age":
        weights = age_weights(len(pnl), AGE_DECAY if decay is None else decay)
    elif method == "volatility":
        decay = VOLATILITY_DECAY if decay is None else decay
        volatility = float(np.sqrt(ewma_variance(pnl, decay)[-1]))
        pnl = rescale_to_current_volatility(pnl, decay)
    order, at_quantile, in_tail = tail_scenarios(
        pnl, weights, level, quantile or default_quantile(method)
    )
    ordered = pnl[order]
    var = -float(at_quantile @ ordered)
    beyond = pnl <= -var
    return TailRisk(
        method,
        level,
        var,
        -float(in_tail @ ordered),
        -float(pnl[beyond].mean()) if beyond.any() else var,
        volatility,
        len(pnl),
    )


def tail_scenarios(
    pnl: NDArray[np.float64],
    weights: NDArray[np.float64],
    level: float,
    quantile: Quantile = "linear",
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return scenarios from worst to best, and how VaR and ES weigh them in that order.

    `-at_quantile @ pnl[order]` is VaR, `-in_tail @ pnl[order]` is ES; both weight vectors sum to
    1. Applied to one position's P&L the same weights give its Euler component. Ties keep time
    order.
    """
    tail = 1 - level
    order = np.argsort(pnl, kind="stable")
    ordered = weights[order]
    cumulative = np.cumsum(ordered)
    # The weights sum to 1 and 1 - 0.95 is 0.05 only up to rounding; a tail of exactly k
    # observations must not slip to its neighbour.
    dust = 1e-12
    at_quantile = np.zeros(len(pnl))
    if quantile == "step":
        at_quantile[min(int(np.searchsorted(cumulative, tail - dust)), len(pnl) - 1)] = 1.0
    else:
        if quantile == "linear":
            span = max(1 - ordered[-1], dust)
            places = (cumulative - ordered) / span
        else:
            places = cumulative - ordered / 2
        above = int(np.searchsorted(places, tail))
        if above in (0, len(pnl)):
            at_quantile[min(above, len(pnl) - 1)] = 1.0
        else:
            gap = places[above] - places[above - 1]
            share = (tail - places[above - 1]) / gap if gap > 0 else 1.0
            at_quantile[above - 1], at_quantile[above] = 1 - share, share
    in_tail = np.minimum(ordered, np.maximum(tail - (cumulative - ordered), 0.0)) / tail
    in_tail /= in_tail.sum()
    return order.astype(np.int64), at_quantile, in_tail


def _parametric(
    pnl: NDArray[np.float64], level: float, method: Method, decay: float | None
) -> TailRisk:
    if method == "ewma":
        mean = 0.0
        variance = ewma_variance(pnl, VOLATILITY_DECAY if decay is None else decay)[-1]
        sigma = float(np.sqrt(variance))
    else:
        mean, sigma = float(pnl.mean()), float(pnl.std(ddof=1))
    z = float(stats.norm.ppf(level))
    shortfall = sigma * float(stats.norm.pdf(z)) / (1 - level) - mean
    return TailRisk(method, level, z * sigma - mean, shortfall, None, sigma, len(pnl))


def _check_decay(decay: float) -> None:
    if not 0 < decay <= 1:
        msg = f"weighting observations: expected a decay in (0, 1], was {decay!r}"
        raise ConfigurationError(msg)
