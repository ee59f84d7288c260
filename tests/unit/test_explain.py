"""What an analyst reads: sentences from contributions, and what would not have alerted."""

from __future__ import annotations

import numpy as np
import pytest

from models.counterfactual import Change, ChangeFinder
from models.reasons import SentenceWriter

NAMES = (
    "amount",
    "customer_count_1d",
    "customer_count_30d",
    "customer_amount_mean_7d",
    "customer_amount_mean_30d",
    "terminal_fraud_rate_7d_delay_7d",
    "night",
)
VALUES = np.array([250.0, 7.0, 30.0, 81.5, 40.0, 0.4, 1.0])
WRITER = SentenceWriter(NAMES)


def test_the_strongest_reasons_come_first_with_what_is_usual() -> None:
    shares = np.array([-0.5, 2.0, 0.1, 0.2, 0.0, 0.4, np.nan])
    assert [reason.text for reason in WRITER.reasons(VALUES[None], shares[None])[0]] == [
        "7 payments in 24 h, this customer's usual is 1",
        "40% of this terminal's payments of 7 days up to 7 days ago were fraud",
        "mean amount over 7 days is 81.50, this customer's usual is 40",
    ]


def test_features_that_lowered_the_score_are_no_reason() -> None:
    assert WRITER.reasons(VALUES[None], np.full((1, len(NAMES)), -1.0)) == [[]]


@pytest.mark.parametrize(
    ("feature", "value", "text"),
    [
        ("amount", 250.0, "amount is 250"),
        ("customer_count_30d", 1.0, "1 payment in 30 days"),
        ("terminal_fraud_rate_7d_delay_7d", np.nan,
         "unknown of this terminal's payments of 7 days up to 7 days ago were fraud"),
        ("night", 0.0, "not at night"),
        ("customer_amount_mean_30d", 12.345, "mean amount over 30 days is 12.35"),
    ],
)  # fmt: skip
def test_each_kind_of_feature_has_its_words(feature: str, value: float, text: str) -> None:
    column = NAMES.index(feature)
    values, shares = np.full(len(NAMES), np.nan), np.zeros(len(NAMES))
    values[column], shares[column] = value, 1.0
    ((reason,),) = WRITER.reasons(values[None], shares[None])
    assert (reason.feature, reason.text) == (feature, text)


def test_a_change_is_told_with_the_value_that_was_and_the_one_that_would_do() -> None:
    change = Change(("customer_count_1d", "amount"), (7.0, 250.0), (1.0, 40.0), 0.2121)
    assert WRITER.change(change, 0.35) == (
        "With 1 payment in 24 h instead of 7 and amount 40 instead of 250 the score would be "
        "0.212, below 0.350."
    )


def _score(rows: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(rows @ np.array([1.0, 1.0, 0.0]) - 4.0)))


REFERENCE = np.random.default_rng(2).normal(size=(500, 3))
FINDER = ChangeFinder(("a", "b", "c"), REFERENCE, _score)


def _find(*rows: list[float], threshold: float = 0.5) -> list[Change | None]:
    matrix = np.array(rows)
    return FINDER.find(matrix, matrix, threshold)


def test_one_feature_is_changed_where_one_is_enough() -> None:
    (change,) = _find([5.0, 0.5, 0.0])
    assert change is not None
    assert change.features == ("a",)
    assert change.score < 0.5
    assert change.after[0] in REFERENCE[:, 0]


def test_two_features_are_changed_where_one_is_not_enough() -> None:
    (change,) = _find([9.0, 9.0, 0.0])
    assert change is not None
    assert sorted(change.features) == ["a", "b"]


def test_of_the_changes_that_do_the_nearest_is_chosen() -> None:
    (change,) = _find([5.0, 0.0, 0.0])
    assert change is not None
    enough = [value for value in np.sort(REFERENCE[:, 0]) if _score(np.array([value, 0, 0])) < 0.5]
    offered = np.quantile(REFERENCE[:, 0], np.linspace(0, 1, 8), method="nearest")
    assert change.after[0] == max(value for value in offered if value in enough)


def test_no_change_is_offered_where_none_exists() -> None:
    assert _find([9.0, 9.0, 0.0], threshold=0.0) == [None]


def test_rows_of_a_batch_get_what_each_would_get_alone() -> None:
    rows = [[5.0, 0.5, 0.0], [9.0, 9.0, 0.0], [3.0, 3.0, 9.0], [-1.0, 6.0, np.nan]]
    assert _find(*rows) == [_find(row)[0] for row in rows]


def test_nothing_is_proposed_for_a_feature_that_did_not_raise_the_score() -> None:
    rows = np.array([[5.0, 0.5, 0.0]])
    assert FINDER.find(rows, np.array([[-1.0, np.nan, 0.0]]), 0.5) == [None]
