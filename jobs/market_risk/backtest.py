"""Back-tests of value at risk: Kupiec, Christoffersen and the Basel traffic light.

An *exception* (a hit) is a day whose loss exceeded the forecast. All statistics are likelihood
ratios with the usual `0 * log 0 = 0`; p-values are from the chi-square distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from schemas.errors import ConfigurationError

__all__ = [
    "BacktestReport",
    "LikelihoodRatio",
    "TrafficLight",
    "backtest",
    "christoffersen_independence",
    "conditional_coverage",
    "confidence_of",
    "exceptions_of",
    "kupiec",
    "traffic_light",
]

Zone = Literal["green", "yellow", "red"]

_BASEL_MULTIPLIERS: Final = (0.0, 0.40, 0.50, 0.65, 0.75, 0.85, 1.0)
_BASEL_WINDOW: Final = 250


@dataclass(frozen=True, slots=True)
class LikelihoodRatio:
    """One likelihood-ratio test: the statistic, its degrees of freedom and its p-value."""

    statistic: float
    degrees_of_freedom: int
    p_value: float

    def rejected(self, significance: float = 0.05) -> bool:
        """Return whether the model is rejected at this significance."""
        return self.p_value < significance


@dataclass(frozen=True, slots=True)
class TrafficLight:
    """The Basel zone of a back-test.

    `cumulative_probability` is the chance of this many exceptions or fewer under a right model;
    `multiplier_increase` is what the Basel table adds to the multiplier 3 (250 days at 99%; scaled
    to other windows by cumulative probability zone only, so None there outside the green zone).
    """

    zone: Zone
    cumulative_probability: float
    multiplier_increase: float | None


@dataclass(frozen=True, slots=True)
class BacktestReport:
    """All tests of one forecast series."""

    observations: int
    exceptions: int
    confidence: float
    expected_exceptions: float
    kupiec: LikelihoodRatio
    independence: LikelihoodRatio | None
    conditional_coverage: LikelihoodRatio | None
    traffic_light: TrafficLight


def confidence_of(level: float) -> float:
    """Return a level as a confidence in (0.5, 1): 0.95, 0.05 and 95 all mean 95%.

    Raises:
        ConfigurationError: if it is none of them.
    """
    confidence = level / 100 if 1 < level < 100 else level
    if 0 < confidence < 0.5:
        confidence = 1 - confidence
    if not 0.5 <= confidence < 1:
        msg = f"reading a confidence level: expected 0.95, 0.05 or 95, was {level!r}"
        raise ConfigurationError(msg)
    # 1 - 0.05 is 0.95 but 1 - 0.01 is 0.99 with dust; the dust would print and move a quantile.
    return round(confidence, 12)


def exceptions_of(
    pnl: NDArray[np.float64], value_at_risk: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return, for each day, whether its loss exceeded its forecast (a positive number)."""
    result: NDArray[np.bool_] = -pnl > value_at_risk
    return result


def kupiec(observations: int, exceptions: int, confidence: float) -> LikelihoodRatio:
    """Test that the exception rate equals `1 - confidence` (proportion of failures).

    Kupiec, "Techniques for verifying the accuracy of risk measurement models", 1995, one degree of
    freedom.

    Raises:
        ConfigurationError: if the counts make no sense.
    """
    if not 0 <= exceptions <= observations or observations < 1:
        msg = (
            "testing coverage: expected 0 <= exceptions <= observations and at least one "
            f"observation, was {exceptions!r} of {observations!r}"
        )
        raise ConfigurationError(msg)
    tail = 1 - confidence
    rate = exceptions / observations
    quiet = observations - exceptions
    null = special.xlogy(quiet, 1 - tail) + special.xlogy(exceptions, tail)
    free = special.xlogy(quiet, 1 - rate) + special.xlogy(exceptions, rate)
    return _ratio(2 * (free - null), 1)


def christoffersen_independence(hits: NDArray[np.bool_]) -> LikelihoodRatio:
    """Test that an exception today says nothing about tomorrow (first-order Markov alternative).

    Christoffersen, "Evaluating interval forecasts", 1998, one degree of freedom. `hits` is in order
    of time; fewer than two days give a statistic of 0.
    """
    before, after = hits[:-1], hits[1:]
    n00 = int(np.sum(~before & ~after))
    n01 = int(np.sum(~before & after))
    n10 = int(np.sum(before & ~after))
    n11 = int(np.sum(before & after))
    total = n00 + n01 + n10 + n11
    if total == 0:
        return _ratio(0.0, 1)
    rate = (n01 + n11) / total
    after_quiet = n01 / (n00 + n01) if n00 + n01 else 0.0
    after_hit = n11 / (n10 + n11) if n10 + n11 else 0.0
    null = special.xlogy(n00 + n10, 1 - rate) + special.xlogy(n01 + n11, rate)
    free = (
        special.xlogy(n00, 1 - after_quiet)
        + special.xlogy(n01, after_quiet)
        + special.xlogy(n10, 1 - after_hit)
        + special.xlogy(n11, after_hit)
    )
    return _ratio(2 * (free - null), 1)


def conditional_coverage(hits: NDArray[np.bool_], confidence: float) -> LikelihoodRatio:
    """Test coverage and independence together: the sum of both, two degrees of freedom."""
    coverage = kupiec(len(hits), int(np.sum(hits)), confidence)
    return _ratio(coverage.statistic + christoffersen_independence(hits).statistic, 2)


def traffic_light(observations: int, exceptions: int, confidence: float) -> TrafficLight:
    """Return the Basel zone: yellow from 95%, red from 99.99% cumulative binomial probability.

    Basel Committee, "Supervisory framework for the use of backtesting", 1996; with 250 observations
    at 99% this is 0-4 green, 5-9 yellow, 10 and more red.
    """
    cumulative = float(stats.binom.cdf(exceptions, observations, 1 - confidence))
    zone: Zone = "green" if cumulative < 0.95 else "yellow" if cumulative < 0.9999 else "red"
    increase: float | None = 0.0 if zone == "green" else 1.0 if zone == "red" else None
    if observations == _BASEL_WINDOW and confidence == 0.99:
        increase = _BASEL_MULTIPLIERS[min(max(exceptions - 4, 0), len(_BASEL_MULTIPLIERS) - 1)]
    return TrafficLight(zone, cumulative, increase)


def backtest(
    observations: int,
    exceptions: int,
    confidence: float,
    hits: NDArray[np.bool_] | None = None,
) -> BacktestReport:
    """Run every test; those of independence need `hits`, the exceptions in order of time.

    Raises:
        ConfigurationError: if the counts make no sense or disagree with `hits`.
    """
    if hits is not None and (len(hits), int(np.sum(hits))) != (observations, exceptions):
        msg = (
            f"back-testing: expected {observations} observations with {exceptions} exceptions, "
            f"was a sequence of {len(hits)} with {int(np.sum(hits))}"
        )
        raise ConfigurationError(msg)
    return BacktestReport(
        observations=observations,
        exceptions=exceptions,
        confidence=confidence,
        expected_exceptions=observations * (1 - confidence),
        kupiec=kupiec(observations, exceptions, confidence),
        independence=None if hits is None else christoffersen_independence(hits),
        conditional_coverage=None if hits is None else conditional_coverage(hits, confidence),
        traffic_light=traffic_light(observations, exceptions, confidence),
    )


def _ratio(statistic: float, degrees: int) -> LikelihoodRatio:
    # Rounding can leave -1e-16 where the rate equals the tail exactly.
    statistic = max(float(statistic), 0.0)
    return LikelihoodRatio(statistic, degrees, float(stats.chi2.sf(statistic, degrees)))
