"""Put every measure of one scored test period together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.metrics import (
    BudgetResult,
    CalibrationBin,
    Interval,
    MoneyPoint,
    at_budget,
    auc_roc,
    average_precision,
    best_money_threshold,
    bootstrap_of_days,
    brier_score,
    calibration_bins,
    card_precision_by_day,
    money_curve,
)
from models.protocol import DAY_MS
from models.resampling import resample, threshold_intervals

__all__ = ["BUDGETS", "Evaluation", "Labelled", "at_threshold", "evaluate"]

BUDGETS: Final = (50, 100, 200)
"""Alerts a day at which precision and recall are reported."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Scored rows with their outcome, all of length n."""

    is_fraud: NDArray[np.bool_]
    score: NDArray[np.float64]
    customer_codes: NDArray[np.int64]
    event_time_ms: NDArray[np.int64]
    amount_minor: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures of one test period; money in minor units, intervals at 95 %."""

    rows: int
    frauds: int
    auc_roc: float
    auc_roc_interval: Interval
    average_precision: float
    average_precision_interval: Interval
    card_precision_at_100: float
    card_precision_at_100_interval: Interval
    card_recall_at_100: float
    card_recall_at_100_interval: Interval
    brier: float
    brier_interval: Interval
    budgets: tuple[BudgetResult, ...]
    calibration: tuple[CalibrationBin, ...]
    money: tuple[MoneyPoint, ...]
    best_money: MoneyPoint
    fraud_amount_minor: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers without the money curve, for JSON."""
        plain = asdict(self)
        del plain["money"]
        return plain


def evaluate(
    rows: Labelled,
    review_cost_minor: int,
    generator: np.random.Generator,
    alert_budget: int = BUDGETS[0],
) -> Evaluation:
    """Measure scores against labels; `alert_budget` joins the budgets that are reported."""
    day = rows.event_time_ms // DAY_MS
    precisions, recalls = card_precision_by_day(rows.is_fraud, rows.score, rows.customer_codes, day)
    budgets = sorted({*BUDGETS, alert_budget})
    again = resample(
        rows.is_fraud,
        rows.score,
        rows.customer_codes,
        day,
        [at_budget(rows.is_fraud, rows.score, day, budget) for budget in budgets],
        calibration_bins(rows.is_fraud, rows.score),
        generator,
    )
    money = money_curve(rows.is_fraud, rows.score, rows.amount_minor, review_cost_minor)
    return Evaluation(
        rows=len(rows.score),
        frauds=int(rows.is_fraud.sum()),
        auc_roc=auc_roc(rows.is_fraud, rows.score),
        auc_roc_interval=again.auc_roc,
        average_precision=average_precision(rows.is_fraud, rows.score),
        average_precision_interval=again.average_precision,
        card_precision_at_100=float(precisions.mean()),
        card_precision_at_100_interval=bootstrap_of_days(precisions, generator),
        card_recall_at_100=float(np.nanmean(recalls)) if not np.isnan(recalls).all() else 0.0,
        card_recall_at_100_interval=bootstrap_of_days(recalls, generator),
        brier=brier_score(rows.is_fraud, rows.score),
        brier_interval=again.brier,
        budgets=again.budgets,
        calibration=again.calibration,
        money=tuple(money),
        best_money=best_money_threshold(money),
        fraud_amount_minor=float(rows.amount_minor[rows.is_fraud].sum()),
    )


def at_threshold(
    rows: Labelled, threshold: float, review_cost_minor: int, generator: np.random.Generator
) -> dict[str, Any]:
    """Return what reviewing every row at or above `threshold` finds and keeps, with intervals."""
    flagged = rows.score >= threshold
    hits = int((flagged & rows.is_fraud).sum())
    reviews = int(flagged.sum())
    saved = float(rows.amount_minor[flagged & rows.is_fraud].sum())
    intervals = threshold_intervals(
        rows.is_fraud,
        flagged,
        rows.amount_minor,
        rows.customer_codes,
        review_cost_minor,
        generator,
    )
    return {
        "threshold": threshold,
        "reviews": reviews,
        "precision": hits / reviews if reviews else 0.0,
        "recall": hits / int(rows.is_fraud.sum()) if rows.is_fraud.any() else 0.0,
        "money_saved_minor": saved - reviews * review_cost_minor,
        **{f"{name}_interval": [one.low, one.high] for name, one in intervals.items()},
    }
