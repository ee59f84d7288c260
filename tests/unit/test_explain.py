"""What an analyst reads: sentences from contributions, and what would not have alerted."""

from __future__ import annotations

import numpy as np

from models.counterfactual import smallest_change
from models.reasons import sentences

NAMES = (
    "amount",
    "customer_count_1d",
    "customer_count_30d",
    "terminal_fraud_rate_7d_delay_7d",
    "night",
)
VALUES = np.array([250.0, 7.0, 30.0, 0.4, 1.0])


def test_the_strongest_reasons_come_first_with_what_is_usual() -> None:
    reasons = sentences(NAMES, VALUES, np.array([-0.5, 2.0, 0.1, 0.4, np.nan]), limit=2)
    assert [reason.text for reason in reasons] == [
        "7 payments in 24 h, this customer's usual is 1",
        "40% of this terminal's payments of 7 days up to 7 days ago were fraud",
    ]


def test_features_that_lowered_the_score_are_no_reason() -> None:
    assert sentences(NAMES, VALUES, np.full(5, -1.0)) == []


def _score(rows: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(rows @ np.array([1.0, 1.0, 0.0]) - 4.0)))


REFERENCE = np.random.default_rng(2).normal(size=(500, 3))


def test_one_feature_is_changed_where_one_is_enough() -> None:
    row = np.array([5.0, 0.5, 0.0])
    change = smallest_change(row, ("a", "b", "c"), row, REFERENCE, _score, 0.5)
    assert change is not None
    assert change.features == ("a",)
    assert change.score < 0.5
    assert change.after[0] in REFERENCE[:, 0]


def test_two_features_are_changed_where_one_is_not_enough() -> None:
    row = np.array([9.0, 9.0, 0.0])
    change = smallest_change(row, ("a", "b", "c"), row, REFERENCE, _score, 0.5)
    assert change is not None
    assert sorted(change.features) == ["a", "b"]


def test_no_change_is_offered_where_none_exists() -> None:
    row = np.array([9.0, 9.0, 0.0])
    assert smallest_change(row, ("a", "b", "c"), row, REFERENCE, _score, 0.0) is None
