"""The fraud job on a real Flink cluster with real Kafka, Redis and ClickHouse."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from connectors.clickhouse import ClickHouseClient
from connectors.control import publish_control
from connectors.evidence import ranges_of, read_range
from connectors.flink import FlinkCluster
from connectors.settings import Settings
from jobs.cli.main import cli
from jobs.fraud.accounts import audit_fraud
from jobs.fraud.features import FRAUD_FEATURES
from jobs.submission import submit_job
from models.control import make_control
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.reasons import Limits
from schemas.registry import open_registry
from tests.support.fraud_stream import DAY_MS, FraudStream, Record, expected_features

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

WAIT_SECONDS = 240
RULES = """
format: 1
name: second
rules:
  - id: everything_above_a_cent
    title: "An amount of {amount}."
    when: amount > 0
    then: review
    weight: 1
"""


class Running:
    """The job of one execution mode, on topics and a database of its own."""

    def __init__(self, base: Settings, mode: str) -> None:
        tree = base.model_dump()
        tree["flink"]["execution_mode"] = mode
        tree["kafka"]["topics"]["prefix"] = f"{mode}-"
        tree["clickhouse"]["database"] = f"riskstream_{mode}"
        self.settings = Settings.model_validate(tree)
        self.cluster = FlinkCluster(self.settings.flink.rest_url or "")
        self.clickhouse = ClickHouseClient(self.settings.clickhouse)
        self.stream = FraudStream(self.settings, customers=60, limit=2_400)

    def wait_until(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not done():
            if time.monotonic() > deadline:
                causes = [c for j in self.cluster.jobs() for c in self.cluster.exceptions(j.job_id)]
                pytest.fail(f"{what} did not happen in {WAIT_SECONDS} s; the job says {causes[:1]}")
            time.sleep(0.2)

    def rows(self) -> dict[str, dict[str, Any]]:
        found = self.clickhouse.rows("SELECT * FROM scored_transactions")
        by_id = {row["event_id"]: row for row in found}
        assert len(by_id) == len(found), "the view shows an event twice"
        return by_id

    def count(self) -> int:
        return int(self.clickhouse.rows("SELECT count() AS n FROM scored_transactions")[0]["n"])

    def feed(self, records: list[Record]) -> None:
        """Send day by day, each once the day before is through.

        Payments of one terminal come from several partitions, whose order among each other is only
        that of their arrival; a month sent within a second would arrive as no month ever does.
        """
        rows = self.count() + self.labels()
        for _, day in itertools.groupby(
            records, key=lambda record: record.source_time_ms // DAY_MS
        ):
            sent = list(day)
            self.stream.send(sent)
            rows += len(sent)
            self.wait_until("a day's rows", lambda due=rows: self.count() + self.labels() >= due)

    def labels(self) -> int:
        return int(self.clickhouse.rows("SELECT count() AS n FROM labels_raw FINAL")[0]["n"])

    def published(self, topic: str, name: str) -> list[dict[str, Any]]:
        decoder = RecordDecoder(
            open_registry(self.settings.schemas),
            contract(name),
            Limits(max_record_bytes=1 << 24, max_string_bytes=1 << 24),
        )
        ranges = ranges_of(self.settings.kafka, self.settings.kafka.topics.name(topic))
        return [decoder.decode(m.value()) for m in read_range(self.settings.kafka, ranges)]

    def assert_features_are(self, expected: dict[str, dict[str, float]]) -> None:
        rows = self.rows()
        assert rows.keys() == expected.keys()
        for event_id, features in expected.items():
            row = rows[event_id]
            assert {name: row[name] for name in features} == pytest.approx(features, rel=1e-12), (
                event_id
            )


def payments(records: list[Record]) -> list[Record]:
    return [record for record in records if record.payment is not None]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_every_event_comes_out_once_with_the_right_features_and_resumes_from_a_savepoint(
    stack_settings: Settings, mode: str
) -> None:
    running = Running(stack_settings, mode)
    stream, settings = running.stream, running.settings
    cut = len(stream.records) * 2 // 3
    bad = stream.bad_records()
    job_id = submit_job("fraud", settings)

    running.feed(stream.records[: cut // 2])
    stream.send(bad)
    running.feed(stream.records[cut // 2 : cut])
    running.wait_until(
        "every dead letter",
        lambda: len(running.published("dead_letters", "dead_letter")) >= len(bad),
    )
    running.assert_features_are(expected_features(stream.records[:cut]))
    letters = running.published("dead_letters", "dead_letter")
    assert sorted(letter["reason"] for letter in letters) == sorted(str(b.reason) for b in bad)
    raw = {letter["reason"]: (letter["key"], letter["value"]) for letter in letters}
    assert raw == {b.reason: (b.key, b.value) for b in bad}
    alerting = {i for i, row in running.rows().items() if row["decision"] != "approve"}
    running.wait_until(
        "every alert", lambda: len(running.published("alerts", "alert")) >= len(alerting)
    )
    alerts = running.published("alerts", "alert")
    assert sorted(alert["event_id"] for alert in alerts) == sorted(alerting)
    assert alerting, "the stream has frauds, so some events must alert"
    assert all(alert["reasons"] and alert["model_version"] for alert in alerts)

    rules = make_control("activate_rules", "second", "test", 1, {"rules": RULES})
    publish_control(settings, rules.to_record())
    outcome = "SELECT count() AS n, min(outcome) AS o FROM control_outcomes FINAL"
    running.wait_until(
        "the rules on every shard",
        lambda: int(running.clickhouse.rows(outcome)[0]["n"]) == settings.flink.shards,
    )
    assert running.clickhouse.rows(outcome)[0]["o"] == "applied"

    savepoint = running.cluster.savepoint(job_id, None, stop=True)
    again = payments(stream.records[:cut])[:10]
    stream.send(again)
    resumed = settings.model_copy(
        update={"flink": settings.flink.model_copy(update={"parallelism": 1})}
    )
    job_id = submit_job("fraud", resumed, savepoint=savepoint)
    total = len(payments(stream.records))
    running.feed(stream.records[cut:])
    running.assert_features_are(expected_features(stream.records))
    later = {r.payment["event_id"] for r in payments(stream.records[cut:]) if r.payment is not None}
    versions = {row["rule_set_version"] for i, row in running.rows().items() if i in later}
    before = {row["rule_set_version"] for i, row in running.rows().items() if i not in later}
    assert len(versions) == len(before) == 1
    assert versions != before, "rules activated before the savepoint must hold after it"

    def audit_is_clean() -> bool:
        return audit_fraud(settings).clean

    running.wait_until("a clean audit", audit_is_clean)
    verdict = audit_fraud(settings)
    assert verdict.total("dead_lettered") == len(bad) + len(again)
    assert verdict.total("scored") == total
    reasons = [x["reason"] for x in running.published("dead_letters", "dead_letter")]
    assert reasons.count("duplicate_event") == len(again)
    running.cluster.cancel(job_id)


def test_the_commands_show_what_the_job_did(stack_settings: Settings) -> None:
    running = Running(stack_settings, "thread")
    flags = [
        f"--set=home={running.settings.home}",
        "--set=kafka.topics.prefix=thread-",
        "--set=clickhouse.database=riskstream_thread",
    ]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, [*flags, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    listed = json.loads(run("jobs", "--json"))
    assert {job["name"] for job in listed} == {"fraud"}
    audit = json.loads(run("audit", "--json"))
    assert audit["offsets_in"] == audit["scored"] + audit["dead_lettered"] + audit["control"]
    alert = json.loads(
        run("alerts", "tail", "--from-beginning", "--count", "1", "--json").splitlines()[0]
    )
    assert alert["alert_id"]
    letters = run("dead-letters", "list", "--json")
    assert "negative_amount" in letters
    assert set(running.clickhouse.rows("SELECT * FROM scored_transactions LIMIT 1")[0]) >= set(
        FRAUD_FEATURES.names
    )
