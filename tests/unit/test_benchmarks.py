"""The bench's reference and harness, in process: what must hold before any clock starts."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from benchmarks.contestants import payments
from benchmarks.reference import Expected, Reference
from benchmarks.services import job_document, plain_schema
from benchmarks.session import SCORE_TOLERANCE, UnequalResultsError, compare_rows
from benchmarks.workload import Workload
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.rule_columns import rule_catalogue
from jobs.rules.ruleset import RuleSet
from schemas.contract import contract
from tests.support.fraud import Fraud, offline_settings

PAYMENTS = 4_000


def _float(value: object) -> float:
    if isinstance(value, str):
        return float(struct.unpack("<d", bytes.fromhex(value))[0])
    return float(str(value))


class NoProfiles:
    """A Redis that holds nothing."""

    def mget(self, keys: list[bytes]) -> list[bytes | None]:
        return [None] * len(keys)


@pytest.fixture
def job(tmp_path: Path) -> payments.Job:
    settings = offline_settings(
        tmp_path,
        "kafka.bootstrap_servers=127.0.0.1:1",
        "clickhouse.url=http://127.0.0.1:1",
        "flink.rest_url=http://127.0.0.1:1",
    )
    document = job_document(settings)
    file = tmp_path / "job.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return payments.Job.read(str(file))


def test_the_stages_and_the_plain_loop_of_all_contestants_agree_on_every_value(
    tmp_path: Path, job: payments.Job
) -> None:
    # Few customers make 4,000 payments last for months, so that all windows fill and empty again.
    workload = Workload(PAYMENTS, customers=30, terminals=20)
    expected = Reference(job, NoProfiles()).expect(workload.records)
    # One shard: what comes late by days has lost the far end of its windows here (flag truncated).
    fraud = Fraud(offline_settings(tmp_path), 1)
    fraud.send(workload.frames("card-transactions"), range(97, PAYMENTS, 97))
    rows = fraud.rows()
    assert len(rows) == PAYMENTS
    for row in rows:
        wanted = expected[row["event_id"]]
        found = [_float(row[name]) for name in FRAUD_FEATURES.names]
        assert found == wanted.features, row["event_id"]
        assert abs(row["score"] - wanted.score) <= SCORE_TOLERANCE
        assert sorted(row["rules_fired"]) == wanted.fired, row["event_id"]
    decided = {one.decision for one in expected.values()}
    assert decided == {"approve", "review", "block"}


def test_features_and_rules_of_contestants_are_named_as_ours() -> None:
    assert tuple(FRAUD_FEATURES.names) == payments.FEATURES
    rules = RuleSet.load(Path("jobs/fraud/rules.yaml"), rule_catalogue())
    assert tuple(rule.id for rule in rules.rules) == payments.RULES


def test_a_row_that_differs_in_one_value_refuses_the_contestant() -> None:
    expected = {"e1": Expected([1.0, 2.0], 0.25, "review", ["payment_burst"])}
    row = {
        "event_id": "e1",
        "features": [1.0, 2.0],
        "score": 0.25,
        "decision": "review",
        "fired": ["payment_burst"],
    }
    assert compare_rows([row], expected) == 0.0
    for name, wrong in (
        ("features", [1.0, 3.0]),
        ("score", 0.26),
        ("score", math.nan),
        ("decision", "block"),
        ("fired", []),
        ("event_id", "e2"),
    ):
        with pytest.raises(UnequalResultsError):
            compare_rows([{**row, name: wrong}], expected)
    with pytest.raises(UnequalResultsError):
        compare_rows([row, row], expected)


def test_schemas_for_contestants_differ_from_the_contracts_by_logical_types_only() -> None:
    text = contract("card_transaction")
    assert "logicalType" not in plain_schema(text)
    with_types = json.loads(text)
    for field in with_types["fields"]:
        if isinstance(field["type"], dict):
            field["type"].pop("logicalType", None)
    assert json.loads(plain_schema(text)) == with_types


def test_a_terminal_counts_payments_that_come_out_of_order_by_their_time() -> None:
    day = 86_400_000
    times = [0, 2 * day, day, 8 * day]
    log = payments.new_log()
    counts = [payments.add_to_terminal(log, time)[:3] for time in times]
    assert counts[-1] == [1.0, 2.0, 2.0]
