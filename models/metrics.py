"""Judge scores against labels: ranking, cards found, calibration, money, each with an interval.

Definitions follow scikit-learn where it has them (`roc_auc_score`, `average_precision_score`,
`brier_score_loss`; the tests hold them equal). Weights are row multiplicities, which is what the
bootstrap over customers needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BudgetResult",
    "CalibrationBin",
    "Interval",
    "MoneyPoint",
    "Ranked",
    "at_budget",
    "auc_roc",
    "average_precision",
    "best_money_threshold",
    "bootstrap_of_days",
    "brier_score",
    "calibration_bins",
    "calibration_groups",
    "card_precision_by_day",
    "customer_weights",
    "interval",
    "money_curve",
    "paired_difference",
    "threshold_for_budget",
]

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile bootstrap interval at 95 %."""

    low: float
    high: float
    replicates: int


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """What a team that can review `budget` cards a day would see."""

    budget: int
    precision: float
    recall: float
    threshold: float
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Mean predicted score and observed fraud rate among `count` rows of similar score."""

    predicted: float
    observed: float
    count: int
    observed_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class MoneyPoint:
    """Money kept by reviewing every row at or above `threshold`, in minor units."""

    threshold: float
    saved_minor: float
    reviews: int
    frauds: int


class Ranked:
    """Scores sorted once, descending, with the ends of runs of equal scores."""

    def __init__(self, is_fraud: Flags, scores: Scores) -> None:
        """Sort; what follows may be asked again and again with other weights."""
        self.order = np.argsort(-scores, kind="stable")
        self.fraud = is_fraud[self.order]
        ranked = scores[self.order]
        self.ends = np.append(np.flatnonzero(np.diff(ranked) != 0), len(ranked) - 1)

    def cumulative(self, weights: Scores | None) -> tuple[Scores, Scores]:
        """Return frauds and others at or above each different score, highest first."""
        if weights is None:
            hits = np.cumsum(self.fraud, dtype=np.float64)
            total = np.arange(1, len(self.fraud) + 1, dtype=np.float64)
        else:
            ordered = weights[self.order]
            hits = np.cumsum(ordered * self.fraud)
            total = np.cumsum(ordered)
        return hits[self.ends], (total - hits)[self.ends]

    def auc(self, weights: Scores | None = None) -> float:
        """Return the area under the ROC curve; NaN when only one class is present."""
        hits, misses = self.cumulative(weights)
        if hits[-1] == 0 or misses[-1] == 0:
            return float("nan")
        true_rate = np.concatenate([[0.0], hits / hits[-1]])
        false_rate = np.concatenate([[0.0], misses / misses[-1]])
        return float(np.trapezoid(true_rate, false_rate))

    def precision(self, weights: Scores | None = None) -> float:
        """Return the average precision; NaN without frauds."""
        hits, misses = self.cumulative(weights)
        if hits[-1] == 0:
            return float("nan")
        flagged = hits + misses
        shares = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
        return float(np.sum(np.diff(hits, prepend=0.0) / hits[-1] * shares))


def auc_roc(is_fraud: Flags, scores: Scores) -> float:
    """Return the area under the ROC curve; NaN when only one class is present."""
    return Ranked(is_fraud, scores).auc()


def average_precision(is_fraud: Flags, scores: Scores) -> float:
    """Return the mean precision over recall steps; NaN without frauds."""
    return Ranked(is_fraud, scores).precision()


def brier_score(is_fraud: Flags, scores: Scores) -> float:
    """Return the mean squared difference between score and outcome."""
    return float(np.mean((scores - is_fraud) ** 2))


def card_precision_by_day(
    is_fraud: Flags,
    scores: Scores,
    customer_codes: NDArray[np.int64],
    day: NDArray[np.int64],
    top: int = 100,
) -> tuple[Scores, Scores]:
    """Return, for each day, the compromised share of the `top` cards and the recall among cards.

    A card's score is its highest of the day and it is compromised when any payment of the day is a
    fraud. A card once found compromised leaves the following days. Cards of equal score rank by
    code, so the answer does not depend on a sort. The share is of `top`, also on days with fewer
    cards.
    """
    precisions: list[float] = []
    recalls: list[float] = []
    found = np.zeros(int(customer_codes.max(initial=-1)) + 1, np.bool_)
    for one_day in np.unique(day):
        rows = np.flatnonzero(day == one_day)
        rows = rows[~found[customer_codes[rows]]]
        cards, card_of = np.unique(customer_codes[rows], return_inverse=True)
        best = np.full(len(cards), -np.inf)
        np.maximum.at(best, card_of, scores[rows])
        bad = np.zeros(len(cards), np.bool_)
        np.logical_or.at(bad, card_of, is_fraud[rows])
        chosen = np.argsort(-best, kind="stable")[:top]
        hits = chosen[bad[chosen]]
        found[cards[hits]] = True
        precisions.append(len(hits) / top)
        recalls.append(len(hits) / bad.sum() if bad.any() else float("nan"))
    return np.array(precisions), np.array(recalls)


def at_budget(is_fraud: Flags, scores: Scores, day: NDArray[np.int64], budget: int) -> BudgetResult:
    """Return precision and recall when the `budget` highest payments of each day are reviewed."""
    hits = reviewed = 0
    lowest = np.inf
    for one_day in np.unique(day):
        rows = np.flatnonzero(day == one_day)
        chosen = rows[np.argsort(-scores[rows], kind="stable")[:budget]]
        hits += int(is_fraud[chosen].sum())
        reviewed += len(chosen)
        lowest = min(lowest, float(scores[chosen].min()))
    frauds = int(is_fraud.sum())
    return BudgetResult(
        budget,
        hits / reviewed if reviewed else float("nan"),
        hits / frauds if frauds else float("nan"),
        float(lowest),
    )


def threshold_for_budget(scores: Scores, days: int, budget: int) -> float:
    """Return the score that `budget` payments a day reach on average, between 0 and 1."""
    wanted = max(1, min(len(scores), budget * days))
    return float(
        np.clip(np.partition(scores, len(scores) - wanted)[len(scores) - wanted], 0.0, 1.0)
    )


def money_curve(
    is_fraud: Flags,
    scores: Scores,
    amount_minor: NDArray[np.int64],
    review_cost_minor: int,
    points: int = 200,
) -> list[MoneyPoint]:
    """Return money kept against threshold: amounts of frauds reviewed less the cost of reviews.

    A reviewed fraud is taken as prevented in full; a review costs `review_cost_minor` whatever it
    finds. Points go from few reviews to many, spaced evenly in the logarithm of the review count.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    saved = np.cumsum(np.where(is_fraud[order], amount_minor[order], 0), dtype=np.float64)
    frauds = np.cumsum(is_fraud[order])
    ends = np.append(np.flatnonzero(np.diff(ranked) != 0), len(ranked) - 1)
    counts = np.unique(np.geomspace(1, len(ends), min(points, len(ends))).astype(np.int64)) - 1
    return [
        MoneyPoint(
            float(ranked[end]),
            float(saved[end] - (end + 1) * review_cost_minor),
            int(end + 1),
            int(frauds[end]),
        )
        for end in ends[counts]
    ]


def best_money_threshold(curve: list[MoneyPoint]) -> MoneyPoint:
    """Return the point of the curve that keeps most money (fewest reviews if equal)."""
    return max(curve, key=lambda point: (point.saved_minor, -point.reviews))


def calibration_bins(is_fraud: Flags, scores: Scores, bins: int = 10) -> list[CalibrationBin]:
    """Return bins with equal numbers of frauds expected by the score, lowest scores first.

    Frauds are rare, so equal-count bins would put all of them in the last one; cutting the
    cumulated score instead gives each bin about the same expected number.
    """
    return [
        CalibrationBin(float(scores[rows].mean()), float(is_fraud[rows].mean()), len(rows))
        for rows in calibration_groups(scores, bins)
    ]


def calibration_groups(scores: Scores, bins: int = 10) -> list[NDArray[np.int64]]:
    """Return the row numbers of each bin of `calibration_bins`, none of them empty."""
    order = np.argsort(scores, kind="stable")
    cumulated = np.cumsum(scores[order])
    if cumulated[-1] <= 0:
        return []
    edges = np.searchsorted(cumulated, np.linspace(0, cumulated[-1], bins + 1)[1:-1])
    return [rows for rows in np.split(order, np.unique(edges)) if len(rows)]


def bootstrap_of_days(
    values: Scores, generator: np.random.Generator, replicates: int = 2000
) -> Interval:
    """Return the interval of the mean of daily values, resampling days; NaN days are left out."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), 0)
    drawn = generator.integers(0, len(values), (replicates, len(values)))
    return interval(values[drawn].mean(axis=1))


def paired_difference(
    is_fraud: Flags,
    scores: Scores,
    other_scores: Scores,
    customer_codes: NDArray[np.int64],
    generator: np.random.Generator,
    replicates: int = 200,
) -> tuple[float, float, Interval]:
    """Return both average precisions and the interval of the first less the second.

    Both are resampled together, customer by customer, so what they share cancels out.
    """
    first, second = Ranked(is_fraud, scores), Ranked(is_fraud, other_scores)
    differences = np.array(
        [
            first.precision(weights) - second.precision(weights)
            for weights in customer_weights(customer_codes, generator, replicates)
        ]
    )
    return first.precision(), second.precision(), interval(differences)


def customer_weights(
    customer_codes: NDArray[np.int64], generator: np.random.Generator, replicates: int = 200
) -> Iterator[Scores]:
    """Yield row multiplicities of samples of whole customers, drawn with replacement.

    Payments of one customer are not independent; resampling rows would make intervals too narrow.
    """
    customers, codes = np.unique(customer_codes, return_inverse=True)
    for _ in range(replicates):
        drawn = generator.integers(0, len(customers), len(customers))
        yield np.bincount(drawn, minlength=len(customers)).astype(np.float64)[codes]


def interval(samples: Scores) -> Interval:
    """Return the 95 % percentile interval of resampled values; NaN ones are left out."""
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0:
        return Interval(float("nan"), float("nan"), 0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(low), float(high), len(samples))
