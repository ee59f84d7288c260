"""Decisions: precedence, missing scores, and the default rules of the fraud job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from connectors.profiles import ProfileBatch
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.rule_columns import RuleColumnSource, rule_catalogue
from jobs.rules.decision import Cause, DecisionCode, Thresholds, decide
from jobs.rules.ruleset import MAX_RULES, Action, Rule, RuleSet
from schemas.columns import NumberColumn, StringColumn
from schemas.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")
THRESHOLDS = Thresholds(0.5, 0.9)
APPROVE, REVIEW, BLOCK = DecisionCode.APPROVE, DecisionCode.REVIEW, DecisionCode.BLOCK
RULES = RuleSet(
    [
        Rule("tagging", "t", "a == 1", Action.TAG, weight=90),
        Rule("light_review", "t", "b == 1", Action.REVIEW, weight=1),
        Rule("heavy_review", "t", "c == 1", Action.REVIEW, weight=5),
        Rule("allow", "t", "d == 1", Action.APPROVE),
        Rule("stop", "t", "e == 1", Action.BLOCK),
    ]
)


@pytest.mark.parametrize(
    ("score", "fires", "code", "cause", "rule"),
    [
        (0.1, "", APPROVE, Cause.NONE, None),
        (0.5, "", REVIEW, Cause.SCORE, None),
        (0.9, "", BLOCK, Cause.SCORE, None),
        (0.1, "a", APPROVE, Cause.NONE, None),
        (0.1, "b", REVIEW, Cause.RULE, "light_review"),
        (0.1, "bc", REVIEW, Cause.RULE, "heavy_review"),
        (0.6, "b", REVIEW, Cause.RULE, "light_review"),
        (0.95, "b", BLOCK, Cause.SCORE, None),
        (0.95, "d", APPROVE, Cause.RULE, "allow"),
        (0.95, "bd", APPROVE, Cause.RULE, "allow"),
        (0.1, "de", BLOCK, Cause.RULE, "stop"),
        (0.1, "abcde", BLOCK, Cause.RULE, "stop"),
        (NAN, "", REVIEW, Cause.NO_SCORE, None),
        (float("inf"), "b", REVIEW, Cause.NO_SCORE, None),
        (NAN, "d", APPROVE, Cause.RULE, "allow"),
        (NAN, "e", BLOCK, Cause.RULE, "stop"),
    ],
)
def test_the_strongest_evidence_decides(
    score: float, fires: str, code: DecisionCode, cause: Cause, rule: str | None
) -> None:
    columns = {name: np.array([float(name in fires)]) for name in "abcde"}
    fired = RULES.evaluate(columns, 1)
    decision = decide(np.array([score]), fired, RULES.actions, RULES.order, THRESHOLDS)
    assert (decision.codes[0], decision.causes[0]) == (code, cause)
    number = int(decision.rule[0])
    assert (RULES.rules[number].id if number >= 0 else None) == rule
    assert decision.alerts.tolist() == ([0] if code else [])


def test_the_decision_of_an_event_does_not_depend_on_its_batch() -> None:
    random = np.random.default_rng(7)
    n = 200
    columns = {name: random.integers(0, 2, n).astype(np.float64) for name in "abcde"}
    score = np.where(random.random(n) < 0.1, NAN, random.random(n))
    whole = decide(score, RULES.evaluate(columns, n), RULES.actions, RULES.order, THRESHOLDS)
    for i in range(n):
        one = {name: column[i : i + 1] for name, column in columns.items()}
        fired = RULES.evaluate(one, 1)
        alone = decide(score[i : i + 1], fired, RULES.actions, RULES.order, THRESHOLDS)
        assert alone.codes[0] == whole.codes[i]
        assert alone.causes[0] == whole.causes[i]
        assert alone.rule[0] == whole.rule[i]


def test_thresholds_out_of_order_are_refused() -> None:
    Thresholds(0.0, 1.0)
    for review, block in [(0.9, 0.5), (-0.1, 0.5), (0.5, 1.1), (NAN, 0.5), (0.5, NAN)]:
        with pytest.raises(ConfigurationError, match="0 <= review <= block <= 1"):
            Thresholds(review, block)


def test_the_rules_that_fired_travel_as_one_bit_each() -> None:
    rules = [Rule(f"r{i}", "t", f"a == {i}", Action.TAG) for i in range(MAX_RULES)]
    rule_set = RuleSet(rules)
    fired = rule_set.evaluate({"a": np.array([0.0, 63.0, -1.0])}, 3)
    assert rule_set.masks(fired).tolist() == [1, 1 << 63, 0]
    assert rule_set.masks(fired).dtype == np.uint64
    with pytest.raises(ConfigurationError, match="at most 64 rules"):
        RuleSet([*rules, Rule("more", "t", "a == 1", Action.TAG)])


def test_the_default_rules_compile_over_the_columns_of_the_job() -> None:
    rules = RuleSet.load(ROOT / "jobs/fraud/rules.yaml", rule_catalogue())
    assert len(rules) >= 5
    assert {rule.then for rule in rules.rules} >= {Action.BLOCK, Action.REVIEW, Action.TAG}
    assert [rule.id for rule in rules.disabled] == ["trusted_customers"]


def test_a_rule_cannot_name_a_card_number() -> None:
    assert "card_number" not in rule_catalogue()


def event(n: int, **texts: list[str | None]) -> dict[str, NumberColumn | StringColumn]:
    valid = np.ones(n, bool)
    return {
        "channel": NumberColumn(np.array([4] * n, np.int32), valid),
        "latitude": NumberColumn(np.full(n, 50.0), valid),
        "longitude": NumberColumn(np.full(n, 4.0), valid),
        **{name: StringColumn.from_texts(values) for name, values in texts.items()},
    }


def features(**values: float) -> np.ndarray:
    row = np.zeros((1, len(FRAUD_FEATURES.names)))
    for name, value in values.items():
        row[0, FRAUD_FEATURES.names.index(name)] = value
    return row


def fires(row: np.ndarray, profiles: dict | None = None) -> list[str]:
    rules = RuleSet.load(ROOT / "jobs/fraud/rules.yaml", rule_catalogue())
    source = RuleColumnSource(rules.columns_needed)
    columns = source.columns(event(1), row, np.array([0.1]), profiles or {})
    return [rule.id for rule in rules.fired_rules(rules.evaluate(columns, 1)[0])]


def test_an_ordinary_payment_fires_no_default_rule() -> None:
    row = features(amount=40, customer_count_30d=50, customer_amount_mean_30d=45)
    assert fires(row) == []


def test_an_amount_far_above_the_customers_mean_fires() -> None:
    row = features(amount=140, customer_count_30d=50, customer_amount_mean_30d=45)
    assert fires(row) == ["amount_far_above_own_mean"]


def test_an_extreme_amount_blocks() -> None:
    row = features(amount=240, customer_count_30d=50, customer_amount_mean_30d=45)
    assert fires(row) == ["extreme_amount_for_customer", "amount_far_above_own_mean"]


def test_a_terminal_with_known_fraud_fires() -> None:
    bad = {"terminal_count_7d_delay_7d": 6, "terminal_fraud_rate_7d_delay_7d": 0.9}
    calm = features(amount=40, customer_count_30d=5, customer_amount_mean_30d=45, **bad)
    assert fires(calm) == ["fraudulent_terminal"]


def test_a_burst_of_payments_fires() -> None:
    assert fires(features(amount=1, customer_count_1d=25)) == ["payment_burst"]


def test_profiles_reach_the_rules_and_a_missing_one_fires_nothing() -> None:
    row = features(amount=250, night=0)
    fields = {
        "risk_tier": np.array([3], np.uint8),
        "home_latitude": np.array([40.0]),
        "home_longitude": np.array([4.0]),
    }
    found, none = np.array([True]), np.array([False])
    known = ProfileBatch(fields, found, none)
    assert fires(row, {"customer": known}) == ["high_risk_customer", "far_from_home"]
    unknown = ProfileBatch(fields, none, none)
    assert fires(row, {"customer": unknown}) == []


def test_only_the_columns_that_rules_name_are_provided() -> None:
    source = RuleColumnSource({"score", "amount", "country", "terminal_chargebacks"})
    batch = event(1, country=["GB"], event_id=["x"])
    columns = source.columns(batch, features(amount=7), np.array([0.25]), {})
    assert set(columns) == {"score", "amount", "country", "terminal_chargebacks"}
    rules = RuleSet(
        [Rule("r", "t", 'score == 0.25 and amount == 7 and country == "GB"', Action.TAG)],
        catalogue=rule_catalogue(),
    )
    assert rules.evaluate(columns, 1)[0, 0]
