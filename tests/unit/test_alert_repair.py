"""An alert that was lost comes back as it was: its row and its record say all of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from connectors.frames import FrameBatch
from connectors.settings import load_settings
from jobs.audit import Coordinate
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.parts import StageParts
from jobs.fraud.raised_again import MARK, InForceThen, RaisedAgain, StoredRow, raise_again
from jobs.fraud.rule_columns import PROFILE_KINDS, rule_catalogue
from jobs.rules.decision import DECISION_NAMES, Thresholds
from jobs.rules.ruleset import RuleSet
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.errors import ConfigurationError
from schemas.registry import open_registry
from tests.support.fraud import Fraud, Row, control, offline_settings, payment
from tests.support.pipeline import Counts

OTHER_RULES = """
format: 1
name: others
rules:
  - id: many_today
    title: "{customer_count_1d} payments within a day."
    when: customer_count_1d > 5
    then: review
    weight: 1
"""
TOPIC = "card-transactions"


@pytest.fixture(scope="module")
def fraud(tmp_path_factory: pytest.TempPathFactory) -> Fraud:
    fraud = Fraud(offline_settings(tmp_path_factory.mktemp("repair")), shards=2)
    frames = [
        payment(n, f"C{n % 4}", f"T{n % 3}", amount_minor=20_000 * (n % 11)) for n in range(60)
    ]
    fraud.send(frames[:30])
    fraud.send([control(0, "activate_rules", rules=OTHER_RULES)])
    fraud.send([control(1, "set_thresholds", review="0.05", block="0.5")])
    fraud.send(frames[30:])
    fraud.frames = frames  # type: ignore[attr-defined]
    assert len(fraud.alerts()) > 10
    return fraud


def stored(row: Row) -> StoredRow:
    def number(name: str) -> float:
        value: float = struct.unpack("<d", bytes.fromhex(row[name]))[0]
        return value

    return StoredRow(
        at=Coordinate(row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]),
        decision=DECISION_NAMES[row["decision"]],
        score=row["score"],
        features=[number(name) for name in FRAUD_FEATURES.names],
        rules_fired=row["rules_fired"],
        model_version=row["model_version"],
        rule_set_version=row["rule_set_version"],
        ingested_at_ms=row["ingested_at_ms"],
        decided_at_ms=row["decided_at_ms"],
    )


def in_force(fraud: Fraud) -> InForceThen:
    own = StageParts(fraud.settings).rules()
    others = RuleSet.from_text(OTHER_RULES, rule_catalogue())
    return InForceThen({own.version: own, others.version: others}, [(0, Thresholds(0.05, 0.5))])


def again(
    fraud: Fraud, then: InForceThen, without: frozenset[int] = frozenset(), **changes: Any
) -> RaisedAgain:
    parts = StageParts(fraud.settings)
    rows = [stored(row) for row in fraud.rows() if DECISION_NAMES[row["decision"]] != "approve"]
    for name, value in changes.items():
        rows = [StoredRow(**{**_fields(row), name: value}) for row in rows]
    records = {
        Coordinate(TOPIC, 0, offset): frame
        for offset, frame in enumerate(fraud.frames)  # type: ignore[attr-defined]
        if offset not in without
    }
    profiles = {kind: parts.profiles(kind, Counts()) for kind in PROFILE_KINDS}
    return raise_again(parts, then, rows, records, profiles)


def _fields(row: StoredRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in StoredRow.__dataclass_fields__}


def decoded(fraud: Fraud, frames: Mapping[Coordinate, bytes]) -> dict[str, dict[str, Any]]:
    decoder = RecordDecoder(open_registry(fraud.settings.schemas), contract("alert"))
    found = {}
    for frame in frames.values():
        record = FrameBatch.parse(frame).record_at(0)
        alert = decoder.decode(record.value)
        assert dict(record.headers)["alert_id"] == alert["alert_id"].encode()
        assert record.key == alert["entity_id"].encode()
        found[alert["alert_id"]] = alert
    return found


def test_every_alert_comes_back_as_it_was_but_for_its_mark(fraud: Fraud) -> None:
    # Thresholds that were set later decide nothing that came before; here their answers agree.
    done = again(fraud, in_force(fraud))
    assert done.refused == {}
    rebuilt = decoded(fraud, done.frames)
    lost = {alert["alert_id"]: alert for alert in fraud.alerts()}
    assert rebuilt.keys() == lost.keys()
    kinds = set()
    for name, alert in lost.items():
        one = rebuilt[name]
        assert one["attributes"].pop(MARK) == "true"
        kinds.add(alert["attributes"]["cause"])
        thresholds = {one.pop("threshold"), alert.pop("threshold")}
        assert all(one["score"] >= t or alert["attributes"]["cause"] != "score" for t in thresholds)
        # The reading time of a record is kept with its row; the test's frames say it too.
        same = alert.keys() - {"smallest_change"}
        assert {n: one[n] for n in same} == {n: alert[n] for n in same}
    assert "score" in kinds
    assert len(kinds) > 1


def test_what_cannot_be_proved_is_not_raised_and_says_why(fraud: Fraud) -> None:
    then = in_force(fraud)
    assert set(again(fraud, InForceThen({}, ())).refused.values()) != set()
    nothing = again(fraud, InForceThen({}, then.thresholds))
    assert nothing.frames == {}
    assert all("rule set" in why for why in nothing.refused.values())
    gone = again(fraud, then, model_version="no-such-model")
    assert gone.frames == {}
    assert all("no-such-model" in why for why in gone.refused.values())
    expired = again(fraud, then, without=frozenset(range(60)))
    assert set(expired.refused.values()) == {"Kafka no longer holds its record"}
    impossible = again(fraud, then, decision="block", score=0.0, rules_fired=[])
    assert impossible.frames == {}
    assert all("no thresholds" in why for why in impossible.refused.values())


def test_a_transaction_must_outlive_its_checkpoint_and_a_restart(tmp_path: Path) -> None:
    short = [
        "flink.transaction_timeout_ms=10000",
        "flink.checkpoint_timeout_ms=30000",
        "flink.checkpoint_interval_ms=5000",
    ]
    once = "flink.delivery=exactly-once"
    with pytest.raises(ConfigurationError, match="transaction_timeout_ms must be at least 70000"):
        load_settings(environment={}, overrides=[*short, once])
    assert load_settings(environment={}, overrides=short).flink.tolerable_failed_checkpoints > 1_000
    settings = load_settings(environment={}, overrides=[once])
    flink = settings.flink
    # Each failed checkpoint takes its timeout and the pause before it: all of them, one more, and
    # a restart fit into the life of a transaction that was begun before the first.
    failures = flink.tolerable_failed_checkpoints + 1
    each = flink.checkpoint_timeout_ms + flink.checkpoint_interval_ms
    assert failures >= 2
    assert failures * each + flink.checkpoint_interval_ms < flink.transaction_timeout_ms
