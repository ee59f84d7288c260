"""Intervals of every measure, from one set of samples of customers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.metrics import (
    BudgetResult,
    CalibrationBin,
    Interval,
    Ranked,
    calibration_groups,
    customer_weights,
    interval,
)

__all__ = ["Budgets", "Resampled", "resample", "threshold_intervals"]

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resampled:
    """Intervals of the measures of one scored period; results come back with theirs filled in."""

    auc_roc: Interval
    average_precision: Interval
    brier: Interval
    budgets: tuple[BudgetResult, ...]
    calibration: tuple[CalibrationBin, ...]


class Budgets:
    """The highest payments of each day, as many as may be reviewed, among resampled ones."""

    def __init__(self, is_fraud: NDArray[np.bool_], scores: Scores, day: NDArray[np.int64]) -> None:
        """Sort once; of equal scores the earlier row comes first."""
        self._order = np.lexsort((-scores, day))
        self._fraud = is_fraud[self._order].astype(np.float64)
        days, start = np.unique(day[self._order], return_index=True)
        self._start = start
        self._of_day = np.searchsorted(days, day[self._order])

    def measure(self, weights: Scores, budgets: Sequence[int]) -> list[tuple[float, float]]:
        """Return precision and recall for each budget; `weights` are row multiplicities."""
        ordered = weights[self._order]
        above = np.cumsum(ordered) - ordered
        above -= above[self._start][self._of_day]
        frauds = float(ordered @ self._fraud)
        measured = []
        for budget in budgets:
            reviewed = np.clip(budget - above, 0, ordered)
            hits, total = float(reviewed @ self._fraud), float(reviewed.sum())
            measured.append(
                (
                    hits / total if total else float("nan"),
                    hits / frauds if frauds else float("nan"),
                )
            )
        return measured


def resample(
    is_fraud: NDArray[np.bool_],
    scores: Scores,
    customer_codes: NDArray[np.int64],
    day: NDArray[np.int64],
    budgets: Sequence[BudgetResult],
    calibration: Sequence[CalibrationBin],
    generator: np.random.Generator,
) -> Resampled:
    """Resample whole customers and measure everything on each sample."""
    ranked = Ranked(is_fraud, scores)
    daily = Budgets(is_fraud, scores, day)
    errors = (scores - is_fraud) ** 2
    fraud = is_fraud.astype(np.float64)
    bin_of = np.zeros(len(scores), np.int64)
    for number, rows in enumerate(calibration_groups(scores)):
        bin_of[rows] = number
    singles, budgeted, observed = [], [], []
    for weights in customer_weights(customer_codes, generator):
        singles.append(
            (
                ranked.auc(weights),
                ranked.precision(weights),
                float(weights @ errors / weights.sum()),
            )
        )
        budgeted.append(daily.measure(weights, [one.budget for one in budgets]))
        frauds = np.bincount(bin_of, weights * fraud, minlength=len(calibration))
        count = np.bincount(bin_of, weights, minlength=len(calibration))
        observed.append(np.divide(frauds, count, out=np.full(len(count), np.nan), where=count > 0))
    area, precision, brier = (interval(samples) for samples in np.array(singles).T)
    at_budgets = np.array(budgeted)
    rates = np.array(observed)
    return Resampled(
        area,
        precision,
        brier,
        tuple(
            replace(
                one,
                precision_interval=interval(at_budgets[:, number, 0]),
                recall_interval=interval(at_budgets[:, number, 1]),
            )
            for number, one in enumerate(budgets)
        ),
        tuple(
            replace(one, observed_interval=interval(rates[:, number]))
            for number, one in enumerate(calibration)
        ),
    )


def threshold_intervals(
    is_fraud: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    amount_minor: NDArray[np.int64],
    customer_codes: NDArray[np.int64],
    review_cost_minor: int,
    generator: np.random.Generator,
) -> dict[str, Interval]:
    """Return intervals of precision, recall and money kept when `flagged` rows are reviewed."""
    hit = flagged & is_fraud
    counted = [rows.astype(np.float64) for rows in (hit, flagged, is_fraud)]
    kept = np.where(hit, amount_minor, 0) - np.where(flagged, review_cost_minor, 0)
    samples = []
    for weights in customer_weights(customer_codes, generator):
        hits, reviews, frauds = (float(weights @ rows) for rows in counted)
        samples.append(
            (
                hits / reviews if reviews else float("nan"),
                hits / frauds if frauds else float("nan"),
                float(weights @ kept),
            )
        )
    names = ("precision", "recall", "money_saved_minor")
    return {name: interval(values) for name, values in zip(names, np.array(samples).T, strict=True)}
