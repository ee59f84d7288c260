"""Alerts: ids, reasons in order, and records that fit the contract."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from jobs.fraud.reasons import FRAUD_CAUSE, AlertBuilder, ScoredRows, alert_id
from jobs.rules.decision import Thresholds, decide
from jobs.rules.ruleset import Action, Rule, RuleSet
from models.counterfactual import Change
from models.evidence import Evidence
from models.reasons import SentenceWriter
from schemas.columns import NumberColumn, StringColumn

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = fastavro.parse_schema(
    json.loads((ROOT / "schemas/contracts/alert.avsc").read_text(encoding="utf-8"))
)
NAN = float("nan")
NAMES = ("amount", "customer_count_1d", "terminal_fraud_rate_7d_delay_7d")
RULES = RuleSet(
    [
        Rule("noted", "Noted.", "amount > 0", Action.TAG, weight=99),
        Rule("dear", "{amount} is much, by {customer_id}.", "amount > 100", Action.REVIEW, 10),
        Rule("never", "Stop.", "amount > 1000", Action.BLOCK),
    ]
)
THRESHOLDS = Thresholds(0.5, 0.9)


def scored(amounts: list[float], scores: list[float]) -> ScoredRows:
    n = len(amounts)
    valid = np.ones(n, bool)
    features = np.column_stack([amounts, np.full(n, 3.0), np.full(n, NAN)])
    columns: dict[str, Any] = {
        "event_id": StringColumn.from_texts([f"e{i}" for i in range(n)]),
        "customer_id": StringColumn.from_texts([f"c{i}" for i in range(n)]),
        "terminal_id": StringColumn.from_texts([f"t{i}" for i in range(n)]),
        "currency": StringColumn.from_texts(["EUR"] * n),
        "event_time_ms": NumberColumn(np.arange(n, dtype=np.int64) + 1_000, valid),
        "amount_minor": NumberColumn((features[:, 0] * 100).astype(np.int64), valid),
        "amount": features[:, 0],
    }
    fired = RULES.evaluate(columns, n)
    score = np.array(scores)
    return ScoredRows(
        columns,
        features,
        score,
        fired,
        decide(score, fired, RULES.actions, RULES.order, THRESHOLDS),
        StringColumn.from_texts(["card-transactions"] * n),
        np.arange(n, dtype=np.int32),
        np.arange(n, dtype=np.int64) + 50,
        np.arange(n, dtype=np.int64) + 2_000,
        np.arange(n, dtype=np.int64) + 3_000,
    )


BUILDER = AlertBuilder(RULES, THRESHOLDS, "features-1")
WRITER = SentenceWriter(NAMES)
CHANGE = Change(("amount", "customer_count_1d"), (5.0, NAN), (1.0, 2.0), 0.25)


def build(
    batch: ScoredRows,
    contributions: list[list[float]] | None = None,
    change: Change | None = None,
    error: float = 0.0,
) -> list[dict[str, Any]]:
    rows = batch.decision.alerts
    evidence = None
    if contributions is not None:
        shares = np.array(contributions)
        evidence = Evidence(
            names=NAMES,
            scale="log_odds",
            contributions=shares,
            base=np.full(len(rows), -2.0),
            error=np.full(len(rows), error),
            reasons=WRITER.reasons(batch.features[rows], shares),
            changes=[change] * len(rows),
            change_texts=["Less." if change else ""] * len(rows),
        )
    return BUILDER.build(batch, rows, evidence, "fraud/3", 4_000)


def test_only_events_that_are_not_approved_raise_an_alert() -> None:
    alerts = build(scored([5, 150, 5, 2000, 5], [0.1, 0.1, 0.7, 0.1, 0.95]))
    assert [alert["event_id"] for alert in alerts] == ["e1", "e2", "e3", "e4"]
    assert [alert["decision"] for alert in alerts] == ["review", "review", "block", "block"]
    assert [alert["severity"] for alert in alerts] == ["warning", "warning", "critical", "critical"]
    assert [alert["threshold"] for alert in alerts] == [0.5, 0.5, 0.9, 0.9]
    causes = [alert["attributes"]["cause"] for alert in alerts]
    assert causes == ["rule:dear", "score", "rule:never", "score"]


def test_an_alert_fits_the_contract_and_survives_it() -> None:
    alerts = build(scored([150, 5], [NAN, 0.7]), [[0.5, 0.0, -1.0], [0.0, 2.0, 0.25]], CHANGE)
    for alert in alerts:
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, CONTRACT, alert, strict=True)
        buffer.seek(0)
        read = fastavro.schemaless_reader(buffer, CONTRACT, None)
        assert list(read) == list(alert)
        assert read["alert_id"] == alert["alert_id"]
        json.dumps(alert, allow_nan=False)


def test_reasons_start_with_the_deciding_rule_and_follow_with_the_other_rules() -> None:
    (alert,) = build(scored([150], [0.1]), [[0.5, 2.0, -1.0]])
    assert [reason["code"] for reason in alert["reasons"]] == [
        "dear", "noted", "customer_count_1d", "amount",
    ]  # fmt: skip
    assert alert["reasons"][0]["text"] == "150 is much, by c0."
    assert alert["reasons"][0]["kind"] == "rule"


def test_contributions_that_are_an_estimate_say_how_far_off_they_may_be() -> None:
    batch = scored([5], [0.7])
    (exact,) = build(batch, [[0.5, 2.0, -1.0]])
    (sampled,) = build(batch, [[0.5, 2.0, -1.0]], error=0.01234)
    assert "contribution_error" not in exact["attributes"]
    assert sampled["attributes"]["contribution_error"] == "0.0123"


def test_features_that_lowered_the_score_or_are_unexplained_are_no_reasons() -> None:
    (alert,) = build(scored([5], [0.7]), [[-0.5, 0.0, 1.5]])
    rule, feature = alert["reasons"]
    assert rule["code"] == "noted"
    assert feature["feature"] == "terminal_fraud_rate_7d_delay_7d"
    assert feature["value"] is None
    assert feature["contribution"] == 1.5
    assert "unknown" in feature["text"]


def test_an_alert_carries_every_contribution_and_what_they_are_added_to() -> None:
    (alert,) = build(scored([5], [0.7]), [[0.5, 2.0, -1.0]])
    assert alert["contributions"] == dict(zip(NAMES, [0.5, 2.0, -1.0], strict=True))
    assert alert["contribution_base"] == -2.0
    assert alert["contribution_scale"] == "log_odds"
    assert alert["smallest_change"] is None


def test_the_smallest_change_is_told_in_words_and_numbers() -> None:
    (alert,) = build(scored([5], [0.7]), [[0.5, 2.0, -1.0]], CHANGE)
    assert alert["smallest_change"] == {
        "text": "Less.",
        "score": 0.25,
        "features": [
            {"feature": "amount", "before": 5.0, "after": 1.0},
            {"feature": "customer_count_1d", "before": None, "after": 2.0},
        ],
    }


def test_only_alerts_that_no_rule_raised_are_by_score_alone() -> None:
    batch = scored([5, 150, 5, 150], [0.7, 0.1, 0.95, 0.95])
    rows = batch.decision.alerts
    assert rows.tolist() == [0, 1, 2, 3]
    # The last is blocked by its score; a review rule would alert without it.
    assert BUILDER.only_by_score(batch, rows).tolist() == [True, False, True, False]


def test_a_missing_score_is_a_reason_and_never_reaches_the_record_as_nan() -> None:
    (alert,) = build(scored([5], [NAN]), [[1.0, 1.0, 1.0]])
    assert alert["score"] == 0.0
    assert alert["attributes"]["no_score"] == "true"
    assert alert["attributes"]["cause"] == "no_score"
    assert [reason["code"] for reason in alert["reasons"]] == ["noted", "no_score"]


def test_coordinates_and_times_are_those_of_the_record() -> None:
    alerts = build(scored([5, 150], [0.1, 0.1]))
    assert alerts[0]["source"] == {"topic": "card-transactions", "partition": 1, "offset": 51}
    assert alerts[0]["event_time_ms"] == 1_001
    assert alerts[0]["published_at_ms"] == 2_001
    assert alerts[0]["ingested_at_ms"] == 3_001
    assert alerts[0]["decided_at_ms"] == 4_000
    assert alerts[0]["amount_minor"] == 15_000


def test_the_id_of_an_alert_follows_event_and_cause_alone() -> None:
    first = build(scored([150], [0.1]))[0]
    again = build(scored([150], [0.8]))[0]
    assert first["alert_id"] == again["alert_id"] == alert_id("e0", FRAUD_CAUSE)
    assert alert_id("e0", "fraud") != alert_id("e0", "limit")
    assert alert_id("ab", "c") != alert_id("a", "bc")
    # A change of this value makes every replay after an upgrade double its alerts.
    assert alert_id("e0", "fraud") == "14bed02ccfaba7f18f58ba9b44f10b36"
    assert len(alert_id("é", "fraud")) == 32
