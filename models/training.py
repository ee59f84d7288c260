"""Train one model on one period, or on several prequential folds, and judge it honestly.

What is chosen (parameters, thresholds) is chosen inside the training days: a trial model learns
from the first days and is judged on the last ones. The test days are looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.evaluate import Evaluation, Labelled, at_threshold, evaluate
from models.export import verify_export
from models.kinds import Fitted, Imbalance, Kind, fit, suggest
from models.manifest import Thresholds
from models.metrics import (
    average_precision,
    best_money_threshold,
    money_curve,
    threshold_for_budget,
)
from models.protocol import DAY_MS, Period, Split, TrainingTable, folds_of, split_by_time
from models.routing import hash_texts
from models.session import open_session
from schemas.columns import StringColumn

__all__ = ["Plan", "Progress", "TrainingData", "TrainingRun", "prepare", "train"]

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done and its total."""

BLOCK_PRECISION: Final = 0.9
# A block refuses a payment without a person looking: nine in ten must be right on days the trial
# model has not seen, or the model gets no block threshold below 1.


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train and how to judge it; money in minor units, `alert_budget` per day."""

    kind: Kind
    period: Period
    seed: int
    imbalance: Imbalance = "none"
    parameters: Mapping[str, Any] | None = None
    trials: int = 0
    folds: int = 1
    alert_budget: int = 100
    review_cost_minor: int = 500


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Labelled features: rows float32 (n, k), as the operator will see them."""

    names: tuple[str, ...]
    rows: NDArray[np.float32]
    is_fraud: NDArray[np.bool_]
    customer_codes: NDArray[np.int64]
    event_time_ms: NDArray[np.int64]
    amount_minor: NDArray[np.int64]

    def labelled(self, rows: NDArray[np.int64], score: NDArray[np.float64]) -> Labelled:
        """Pair scores with the outcomes of some rows."""
        return Labelled(
            self.is_fraud[rows],
            score,
            self.customer_codes[rows],
            self.event_time_ms[rows],
            self.amount_minor[rows],
        )


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A trained model with its evaluation; `folds` holds the same for each prequential period."""

    plan: Plan
    fitted: Fitted
    split: Split
    evaluation: Evaluation
    folds: tuple[tuple[Period, Evaluation], ...]
    thresholds: Thresholds
    at_review: Mapping[str, Any]
    scores: NDArray[np.float64]
    test_labels: NDArray[np.bool_]
    export_difference: float
    trials: tuple[tuple[float, Mapping[str, Any]], ...]


def prepare(table: TrainingTable, customer_id: Any, is_fraud: Any) -> TrainingData:
    """Turn a feature table into training data.

    `customer_id` is the card of each event: texts, an Arrow array or a sortable array.

    Raises:
        ModelError: when the file has no labels or no amounts.
    """
    if is_fraud is None:
        msg = "preparing training data: the file has no fraud labels; add TX_FRAUD or is_fraud"
        raise ModelError(msg)
    if table.amount_minor is None:
        msg = "preparing training data: the file has no amounts; add TX_AMOUNT or amount_minor"
        raise ModelError(msg)
    if isinstance(customer_id, StringColumn):
        customer_id = hash_texts(customer_id)
    if hasattr(customer_id, "dictionary_encode"):
        codes = customer_id.dictionary_encode().indices.to_numpy()
    else:
        _, codes = np.unique(np.asarray(customer_id), return_inverse=True)
    return TrainingData(
        names=tuple(table.names),
        rows=np.ascontiguousarray(table.matrix, np.float32),
        is_fraud=np.asarray(is_fraud, np.bool_),
        customer_codes=codes.astype(np.int64),
        event_time_ms=np.asarray(table.event_time_ms, np.int64),
        amount_minor=np.asarray(table.amount_minor, np.int64),
    )


def train(data: TrainingData, plan: Plan, progress: Progress | None = None) -> TrainingRun:
    """Tune (if asked), choose thresholds, train on the whole training period, test once.

    Equal data and plan give equal ONNX bytes and measures.

    Raises:
        ModelError: when the dates hold too little data or the export is not faithful.
    """
    tell: Progress = progress or (lambda stage, done, total: None)
    split = _split(data, plan.period)
    tuned = _tune(data, split, plan, tell)
    parameters = {**(plan.parameters or {}), **(tuned[0][1] if tuned else {})}
    thresholds = _thresholds(data, split, plan, parameters)
    folds: list[tuple[Period, Evaluation]] = []
    periods = folds_of(plan.period, plan.folds)
    for number, period in enumerate(periods):
        tell("fold", number, len(periods))
        split = _split(data, period)
        fitted, scores, difference = _fit_and_score(data, split, plan, parameters)
        generator = np.random.default_rng(plan.seed)
        evaluation = evaluate(
            data.labelled(split.test, scores), plan.review_cost_minor, generator, plan.alert_budget
        )
        folds.append((period, evaluation))
    tell("fold", len(periods), len(periods))
    return TrainingRun(
        plan=plan,
        fitted=fitted,
        split=split,
        evaluation=evaluation,
        folds=tuple(folds),
        thresholds=thresholds,
        at_review=at_threshold(
            data.labelled(split.test, scores),
            thresholds.review,
            plan.review_cost_minor,
            np.random.default_rng(plan.seed),
        ),
        scores=scores,
        test_labels=data.is_fraud[split.test],
        export_difference=difference,
        trials=tuple(tuned),
    )


def _split(data: TrainingData, period: Period) -> Split:
    split = split_by_time(data.event_time_ms, data.customer_codes, data.is_fraud, period)
    if not data.is_fraud[split.test].any():
        msg = (
            f"splitting {period.describe()}: none of {len(split.test)} test rows is a fraud, so "
            "nothing can be measured; choose other dates or more test days"
        )
        raise ModelError(msg)
    return split


def _fit_and_score(
    data: TrainingData, split: Split, plan: Plan, parameters: Mapping[str, Any]
) -> tuple[Fitted, NDArray[np.float64], float]:
    fitted = fit(
        plan.kind,
        data.rows[split.train],
        data.is_fraud[split.train],
        plan.seed,
        parameters,
        plan.imbalance,
    )
    test = data.rows[split.test]
    session = open_session(fitted.onnx)
    scores = session.run(None, {session.get_inputs()[0].name: test})[0].reshape(-1)
    # What is reported is what the exported file says, not the library it came from.
    difference = verify_export(scores.astype(np.float64), fitted.library_scores(test))
    return fitted, scores.astype(np.float64), difference


def _inner(data: TrainingData, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    # The last quarter of the training days, at least one, judges what the days before it teach.
    held = max(1, split.period.train_days // 4)
    border = (split.period.first_day + split.period.train_days - held) * DAY_MS
    early = split.train[data.event_time_ms[split.train] < border]
    late = split.train[data.event_time_ms[split.train] >= border]
    if not (data.is_fraud[early].any() and data.is_fraud[late].any()):
        return split.train, split.train, split.period.train_days
    return early, late, held


def _inner_scores(
    data: TrainingData, split: Split, plan: Plan, parameters: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    early, late, held = _inner(data, split)
    trial = fit(
        plan.kind, data.rows[early], data.is_fraud[early], plan.seed, parameters, plan.imbalance
    )
    return late, trial.library_scores(data.rows[late]), held


def _tune(
    data: TrainingData, split: Split, plan: Plan, tell: Progress
) -> list[tuple[float, dict[str, Any]]]:
    if plan.trials == 0:
        return []
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=plan.seed)
    )
    # The defaults go first, so that tuning never ends below them.
    study.enqueue_trial({name: plan.kind.defaults[name] for name in plan.kind.search})
    tried: list[tuple[float, dict[str, Any]]] = []
    for number in range(plan.trials):
        tell("trial", number, plan.trials)
        trial = study.ask()
        parameters = suggest(plan.kind, trial)
        late, scores, _ = _inner_scores(
            data, split, plan, {**(plan.parameters or {}), **parameters}
        )
        value = average_precision(data.is_fraud[late], scores)
        study.tell(trial, value)
        tried.append((value, parameters))
    tell("trial", plan.trials, plan.trials)
    return sorted(tried, key=lambda one: -one[0])


def _thresholds(
    data: TrainingData, split: Split, plan: Plan, parameters: Mapping[str, Any]
) -> Thresholds:
    late, scores, days = _inner_scores(data, split, plan, parameters)
    rows = data.labelled(late, scores)
    money = best_money_threshold(
        money_curve(rows.is_fraud, rows.score, rows.amount_minor, plan.review_cost_minor)
    )
    budget = threshold_for_budget(scores, days, plan.alert_budget)
    # Never more reviews than the team can do, and no review that costs more than it saves.
    review = float(np.clip(max(money.threshold, budget), 0.0, 1.0))
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(rows.is_fraud[order])
    precise = np.flatnonzero(hits / np.arange(1, len(order) + 1) >= BLOCK_PRECISION)
    block = 1.0
    # At least ten rows: the first hit alone has precision 1 and says nothing.
    if len(precise) and precise[-1] >= 9:
        block = float(np.clip(scores[order[precise[-1]]], review, 1.0))
    basis = (
        f"last {days} training day(s), trial model: review keeps most money within "
        f"{plan.alert_budget} alerts a day at {plan.review_cost_minor} minor units a review; block "
        f"has precision {BLOCK_PRECISION:.0%} or is off"
    )
    return Thresholds(review=review, block=block, basis=basis)
