"""The kinds of model that `riskstream models train` knows, and how each becomes ONNX.

Every kind trains on features cast to float32, because that is what the operator will give it: the
trees see the very numbers they will be asked about.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models._libraries import (
    trees_of_forest,
    trees_of_isolation_forest,
    trees_of_lightgbm,
    trees_of_xgboost,
    unweighted_shares,
)
from models.errors import ModelError
from models.export import LinearModel, linear_model, tree_model
from models.trees import Trees

__all__ = ["KINDS", "Fitted", "Imbalance", "Kind", "fit", "kind_named", "suggest"]

Imbalance = Literal["none", "weights"]
"""`weights` gives frauds the total weight of genuine rows, then shifts the log-odds back."""

Rows = NDArray[np.float32]
Parameters = Mapping[str, Any]


class _Trial(Protocol):
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind: its name, what its score is, its parameters and the range that tuning searches."""

    name: str
    score_kind: Literal["probability", "anomaly"]
    supervised: bool
    defaults: Parameters
    search: Mapping[str, tuple[float, float, bool]]


KINDS: Final[tuple[Kind, ...]] = (
    Kind("logistic", "probability", True, {"C": 1.0}, {"C": (1e-4, 10.0, True)}),
    Kind(
        "lightgbm",
        "probability",
        True,
        {
            "n_estimators": 200,
            "num_leaves": 31,
            "learning_rate": 0.03,
            "min_child_samples": 50,
            "subsample": 0.8,
            "colsample_bytree": 0.8,
            "reg_lambda": 5.0,
        },
        {
            "n_estimators": (50, 300, False),
            "num_leaves": (7, 63, True),
            "learning_rate": (0.01, 0.2, True),
            "min_child_samples": (10, 200, True),
            "reg_lambda": (0.1, 50.0, True),
        },
    ),
    Kind(
        "xgboost",
        "probability",
        True,
        {
            "n_estimators": 150,
            "max_depth": 5,
            "learning_rate": 0.06,
            "min_child_weight": 3.0,
            "subsample": 0.8,
            "colsample_bytree": 0.8,
            "reg_lambda": 5.0,
        },
        {
            "n_estimators": (50, 300, False),
            "max_depth": (3, 8, False),
            "learning_rate": (0.01, 0.3, True),
            "min_child_weight": (1.0, 20.0, True),
            "reg_lambda": (0.1, 50.0, True),
        },
    ),
    Kind(
        "random_forest",
        "probability",
        True,
        {"n_estimators": 100, "max_depth": 12, "min_samples_leaf": 5},
        {
            "n_estimators": (50, 200, False),
            "max_depth": (6, 20, False),
            "min_samples_leaf": (1, 50, True),
        },
    ),
    Kind(
        "isolation_forest",
        "anomaly",
        False,
        {"n_estimators": 200, "max_samples": 256},
        {"n_estimators": (50, 300, False), "max_samples": (64, 2048, True)},
    ),
)
"""Every kind, in the order reports list them."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model: ONNX bytes, the library's own scores as a function, and the arrays inside."""

    kind: Kind
    parameters: dict[str, Any]
    onnx: bytes
    body: Trees | LinearModel
    calibration: str
    _score: Any

    def library_scores(self, rows: Rows) -> NDArray[np.float64]:
        """Return what the training library itself says, shape (n,): the oracle of the export."""
        scores: NDArray[np.float64] = self._score(rows)
        return scores


def kind_named(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        ModelError: when there is none.
    """
    for kind in KINDS:
        if kind.name == name:
            return kind
    msg = f"choosing a model kind: {name!r} is not one of {', '.join(kind.name for kind in KINDS)}"
    raise ModelError(msg)


def suggest(kind: Kind, trial: _Trial) -> dict[str, Any]:
    """Draw parameters for one tuning trial; whole-number defaults stay whole."""
    drawn: dict[str, Any] = {}
    for name, (low, high, log) in kind.search.items():
        if isinstance(kind.defaults[name], int):
            drawn[name] = trial.suggest_int(name, int(low), int(high), log=log)
        else:
            drawn[name] = trial.suggest_float(name, low, high, log=log)
    return drawn


def fit(
    kind: Kind,
    rows: Rows,
    is_fraud: NDArray[np.bool_],
    seed: int,
    parameters: Parameters | None = None,
    imbalance: Imbalance = "none",
) -> Fitted:
    """Train one model; equal input gives equal ONNX bytes.

    With `imbalance="weights"` the training prior is 1:1, so probabilities would be far too high;
    the log-odds are shifted back until the mean probability of the training rows is their rate of
    frauds. For a model without regularisation that is -log(weight) (Elkan, "The Foundations of
    Cost-Sensitive Learning", 2001, theorem 2); a boosted one, shrunk towards the prior it was
    trained with, needs less. The shift is part of the exported model. A forest needs none: its
    leaves keep the share of their rows, unweighted.
    """
    chosen = {**kind.defaults, **(parameters or {})}
    weight = 1.0
    if imbalance == "weights" and kind.supervised:
        weight = float((~is_fraud).sum() / is_fraud.sum())
    with warnings.catch_warnings():
        # Libraries warn about their own deprecations while fitting; none of it concerns the caller.
        warnings.simplefilter("ignore")
        return _FITTERS[kind.name](kind, chosen, rows, is_fraud, seed, weight)


def _weights(is_fraud: NDArray[np.bool_], weight: float) -> NDArray[np.float64]:
    return np.where(is_fraud, weight, 1.0)


def _shift(raw: NDArray[np.float64], is_fraud: NDArray[np.bool_], weight: float) -> float:
    """Return what to take off the log-odds of a model that saw frauds `weight` times."""
    if weight == 1.0:
        return 0.0
    from scipy.optimize import brentq

    rate = float(np.mean(is_fraud))
    # The mean falls from 1 to 0 as the shift grows, so it meets the rate once.
    low, high = float(raw.min()) - 50.0, float(raw.max()) + 50.0
    return float(brentq(lambda shift: float(_sigmoid(raw - shift).mean()) - rate, low, high))


def _calibration(shift: float) -> str:
    return "none" if shift == 0.0 else f"prior shift of -{shift:.6g} on the log-odds"


def _sigmoid(raw: NDArray[np.float64]) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-raw))
    return scores


def _fit_logistic(
    kind: Kind, chosen: dict[str, Any], rows: Rows, is_fraud: Any, seed: int, weight: float
) -> Fitted:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.nan_to_num(rows.astype(np.float64)))
    model = LogisticRegression(C=chosen["C"], max_iter=2000, random_state=seed)
    scaled = scaler.transform(np.nan_to_num(rows.astype(np.float64)))
    model.fit(scaled, is_fraud, sample_weight=_weights(is_fraud, weight))
    shift = _shift(model.decision_function(scaled), is_fraud, weight)
    linear = LinearModel(
        mean=np.array(scaler.mean_, np.float64),
        weight=np.array(model.coef_[0] / scaler.scale_, np.float64),
        intercept=float(model.intercept_[0]) - shift,
    )

    def score(test: Rows) -> NDArray[np.float64]:
        standard = scaler.transform(np.nan_to_num(test.astype(np.float64)))
        return _sigmoid(model.decision_function(standard) - shift)

    return Fitted(kind, chosen, linear_model(linear), linear, _calibration(shift), score)


def _fit_lightgbm(
    kind: Kind, chosen: dict[str, Any], rows: Rows, is_fraud: Any, seed: int, weight: float
) -> Fitted:
    import lightgbm

    model = lightgbm.LGBMClassifier(
        **chosen,
        subsample_freq=1,
        random_state=seed,
        n_jobs=1,  # one thread: OpenMP threads spin, and a shared machine then trains far slower
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    )
    model.fit(rows, is_fraud, sample_weight=_weights(is_fraud, weight))
    shift = _shift(np.asarray(model.booster_.predict(rows, raw_score=True)), is_fraud, weight)
    trees = trees_of_lightgbm(model.booster_).scaled(1.0, -shift)

    def score(test: Rows) -> NDArray[np.float64]:
        return _sigmoid(np.asarray(model.booster_.predict(test, raw_score=True)) - shift)

    return Fitted(kind, chosen, tree_model(trees, "logistic"), trees, _calibration(shift), score)


def _fit_xgboost(
    kind: Kind, chosen: dict[str, Any], rows: Rows, is_fraud: Any, seed: int, weight: float
) -> Fitted:
    import xgboost

    model = xgboost.XGBClassifier(**chosen, random_state=seed, n_jobs=1, tree_method="hist")
    model.fit(rows, is_fraud, sample_weight=_weights(is_fraud, weight))
    booster = model.get_booster()
    margins = booster.predict(xgboost.DMatrix(rows), output_margin=True).astype(np.float64)
    shift = _shift(margins, is_fraud, weight)
    trees = trees_of_xgboost(booster).scaled(1.0, -shift)

    def score(test: Rows) -> NDArray[np.float64]:
        margin = booster.predict(xgboost.DMatrix(test), output_margin=True)
        return _sigmoid(margin.astype(np.float64) - shift)

    return Fitted(kind, chosen, tree_model(trees, "logistic"), trees, _calibration(shift), score)


def _fit_random_forest(
    kind: Kind, chosen: dict[str, Any], rows: Rows, is_fraud: Any, seed: int, weight: float
) -> Fitted:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(**chosen, random_state=seed, n_jobs=2)
    model.fit(rows, is_fraud, sample_weight=_weights(is_fraud, weight))
    trees = trees_of_forest(model, weight)
    calibration = "none" if weight == 1.0 else f"leaf shares of rows, frauds weighed {weight:.6g}"

    def score(test: Rows) -> NDArray[np.float64]:
        scores: NDArray[np.float64]
        if weight == 1.0:
            scores = model.predict_proba(test)[:, 1]
            return scores
        # Which leaf is the library's word; what its rows were is ours.
        leaves = model.apply(test)
        scores = np.mean(
            [
                unweighted_shares(tree.tree_, weight)[leaves[:, number]]
                for number, tree in enumerate(model.estimators_)
            ],
            axis=0,
        )
        return scores

    return Fitted(kind, chosen, tree_model(trees, "identity"), trees, calibration, score)


def _fit_isolation_forest(
    kind: Kind, chosen: dict[str, Any], rows: Rows, is_fraud: Any, seed: int, weight: float
) -> Fitted:
    from sklearn.ensemble import IsolationForest

    model = IsolationForest(**chosen, random_state=seed, n_jobs=2)
    model.fit(np.nan_to_num(rows))
    trees = trees_of_isolation_forest(model)

    def score(test: Rows) -> NDArray[np.float64]:
        scores: NDArray[np.float64] = -model.score_samples(np.nan_to_num(test))
        return scores

    return Fitted(kind, chosen, tree_model(trees, "power_of_two"), trees, "none", score)


_FITTERS: Final = {
    "logistic": _fit_logistic,
    "lightgbm": _fit_lightgbm,
    "xgboost": _fit_xgboost,
    "random_forest": _fit_random_forest,
    "isolation_forest": _fit_isolation_forest,
}
