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
    bootstrap_by_customer,
    bootstrap_of_days,
    brier_score,
    calibration_bins,
    card_precision_by_day,
    money_curve,
)
from models.protocol import DAY_MS

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
    brier: float
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


def evaluate(rows: Labelled, review_cost_minor: int, generator: np.random.Generator) -> Evaluation:
    """Measure scores against labels."""
    day = rows.event_time_ms // DAY_MS
    precisions, recalls = card_precision_by_day(rows.is_fraud, rows.score, rows.customer_codes, day)
    area, precision = bootstrap_by_customer(
        rows.is_fraud, rows.score, rows.customer_codes, generator
    )
    money = money_curve(rows.is_fraud, rows.score, rows.amount_minor, review_cost_minor)
    return Evaluation(
        rows=len(rows.score),
        frauds=int(rows.is_fraud.sum()),
        auc_roc=auc_roc(rows.is_fraud, rows.score),
        auc_roc_interval=area,
        average_precision=average_precision(rows.is_fraud, rows.score),
        average_precision_interval=precision,
        card_precision_at_100=float(precisions.mean()),
        card_precision_at_100_interval=bootstrap_of_days(precisions, generator),
        card_recall_at_100=float(np.nanmean(recalls)) if not np.isnan(recalls).all() else 0.0,
        brier=brier_score(rows.is_fraud, rows.score),
        budgets=tuple(at_budget(rows.is_fraud, rows.score, day, budget) for budget in BUDGETS),
        calibration=tuple(calibration_bins(rows.is_fraud, rows.score)),
        money=tuple(money),
        best_money=best_money_threshold(money),
        fraud_amount_minor=float(rows.amount_minor[rows.is_fraud].sum()),
    )


def at_threshold(rows: Labelled, threshold: float, review_cost_minor: int) -> dict[str, float]:
    """Return what reviewing every row at or above `threshold` finds and keeps."""
    flagged = rows.score >= threshold
    hits = int((flagged & rows.is_fraud).sum())
    reviews = int(flagged.sum())
    saved = float(rows.amount_minor[flagged & rows.is_fraud].sum())
    return {
        "threshold": threshold,
        "reviews": reviews,
        "precision": hits / reviews if reviews else 0.0,
        "recall": hits / int(rows.is_fraud.sum()) if rows.is_fraud.any() else 0.0,
        "money_saved_minor": saved - reviews * review_cost_minor,
    }
