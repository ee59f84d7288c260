"""`riskstream audit` against a log that was tampered with: each gap and double has its place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from connectors.evidence import ranges_of, read_range
from connectors.kafka import broker_number, kafka_python_config, librdkafka_config
from connectors.settings import Settings
from connectors.tables import SCORED_TABLE
from jobs.cli.main import cli
from jobs.fraud import accounts
from jobs.fraud.alert_repair import EXPIRY_MARGIN_MS
from jobs.fraud.raised_again import MARK
from jobs.fraud.resources import prepare
from schemas.avro import RecordDecoder, RecordEncoder
from schemas.contract import contract
from schemas.errors import ConfigurationError
from schemas.registry import open_registry, stable_schema_id
from tests.faults.stand import Stand

pytestmark = [
    pytest.mark.faults,
    pytest.mark.matrix,
    pytest.mark.slow,
    pytest.mark.timeout(1_500),
]

COUNTED = ("offsets_in", "scored", "dead_lettered", "control")
ASKED_FOR = (*COUNTED, "missing", "doubled", "alerts_expected", "alerts_found")


@pytest.fixture(scope="module")
def stand(faults_stack: Settings) -> Iterator[Stand]:
    """Return a stand whose load has ended and whose account is clean."""
    stand = Stand(faults_stack, "tamper", rate=400.0, customers=15_000, history=False)
    try:
        stand.start()
        stand.wait("some alerts", lambda: stand.one(ALERTS) > 50)
        stand.load.stop()
        assert stand.audit(whole=True).clean
        yield stand
    finally:
        stand.stop()


ALERTS = "SELECT countIf(decision != 'approve') AS n FROM {v}"


def command(stand: Stand, *flags: str) -> tuple[Result, dict[str, Any]]:
    settings = stand.settings
    options = [
        f"--set=home={settings.home}",
        f"--set=kafka.topics.prefix={settings.kafka.topics.prefix}",
        f"--set=clickhouse.database={settings.clickhouse.database}",
        f"--set=schemas.registry={settings.schemas.registry}",
        f"--set=models.registry={settings.models.registry}",
    ]
    result = CliRunner().invoke(cli, [*options, "audit", "--json", *flags], catch_exceptions=False)
    return result, json.loads(result.stdout)


def alerts(stand: Stand) -> list[tuple[int, int, dict[str, Any]]]:
    """Return (partition, offset, alert) of every alert on the topic."""
    decoder = RecordDecoder(open_registry(stand.settings.schemas), contract("alert"))
    ranges = ranges_of(stand.settings.kafka, stand.settings.kafka.topics.name("alerts"))
    return [
        (message.partition(), message.offset(), decoder.decode(message.value()))
        for message in read_range(stand.settings.kafka, ranges)
    ]


def publish_alert(stand: Stand, alert: dict[str, Any]) -> None:
    text = contract("alert")
    producer = Producer(librdkafka_config(stand.settings.kafka))
    value = RecordEncoder(text, stable_schema_id(text)).encode(alert)
    producer.produce(
        stand.settings.kafka.topics.name("alerts"),
        value,
        alert["entity_id"].encode(),
        headers=[("alert_id", alert["alert_id"].encode())],
    )
    assert producer.flush(30) == 0


def drop_alerts(stand: Stand, partition: int, before: int) -> None:
    topic = stand.settings.kafka.topics.name("alerts")
    admin = KafkaAdminClient(**kafka_python_config(stand.settings.kafka))
    try:
        admin.delete_records({TopicPartition(topic, partition): before})
    finally:
        admin.close()


def test_a_clean_log_adds_up_by_offset_by_time_and_as_a_whole(stand: Stand) -> None:
    result, whole = command(stand)
    assert result.exit_code == 0
    assert whole.keys() >= set(ASKED_FOR)
    assert whole["offsets_in"] == whole["scored"] + whole["dead_lettered"] + whole["control"]
    assert whole["scored"] == stand.one("SELECT count() AS n FROM {v}")
    assert whole["alerts_expected"] == whole["alerts_found"] == stand.one(ALERTS)
    result, first = command(stand, "--to-offset=100")
    assert result.exit_code == 0
    result, rest = command(stand, "--from-offset=100")
    assert result.exit_code == 0
    for name in (*ASKED_FOR,):
        assert first[name] + rest[name] == whole[name], name
    middle_ms = stand.one("SELECT toInt64(avg(published_at_ms)) AS n FROM {v}")
    middle = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(middle_ms / 1000))
    _, early = command(stand, f"--until={middle}")
    _, late = command(stand, f"--since={middle}")
    assert early["clean"]
    assert late["clean"]
    assert early["offsets_in"] > 0
    assert late["offsets_in"] > 0
    for name in (*ASKED_FOR,):
        assert early[name] + late[name] == whole[name], name


@pytest.mark.parametrize("apart_ms", [0, -86_400_000])
def test_outcomes_are_looked_for_from_a_time_on_and_from_the_beginning_if_need_be(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, apart_ms: int
) -> None:
    # A day after the events there is neither alert nor dead letter.
    monkeypatch.setattr(accounts, "CLOCKS_APART_MS", apart_ms)
    middle_ms = stand.one("SELECT toInt64(avg(published_at_ms)) AS n FROM {v}")
    audit = accounts.audit_fraud(stand.settings, since_ms=middle_ms)
    assert audit.clean
    assert audit.alerts_found > 0


def test_a_row_that_is_gone_is_missing_at_its_place(stand: Stand) -> None:
    (row,) = stand.clickhouse.rows(
        "SELECT kafka_topic, kafka_partition, kafka_offset FROM scored_transactions "
        "WHERE decision = 'approve' ORDER BY kafka_offset LIMIT 1 OFFSET 70"
    )
    copy = f"{SCORED_TABLE}_copy"
    place = f"kafka_partition = {row['kafka_partition']} AND kafka_offset = {row['kafka_offset']}"
    stand.clickhouse.execute(f"CREATE TABLE {copy} AS {SCORED_TABLE}")
    stand.clickhouse.execute(f"INSERT INTO {copy} SELECT * FROM {SCORED_TABLE} WHERE {place}")
    stand.clickhouse.execute(f"DELETE FROM {SCORED_TABLE} WHERE {place}")
    result, said = command(stand)
    assert result.exit_code == 1
    assert said["missing"] == 1
    assert said["missing_at"] == [
        {
            "topic": row["kafka_topic"],
            "partition": row["kafka_partition"],
            "offset": row["kafka_offset"],
        }
    ]
    after = row["kafka_offset"] + 1
    assert command(stand, f"--from-offset={after}")[0].exit_code == 0
    stand.clickhouse.execute(f"INSERT INTO {SCORED_TABLE} SELECT * FROM {copy}")
    assert command(stand)[0].exit_code == 0
    # The same row twice is one row: readers see what the view shows.
    stand.clickhouse.execute(f"INSERT INTO {SCORED_TABLE} SELECT * FROM {copy}")
    assert command(stand)[0].exit_code == 0


def test_rows_of_offsets_that_kafka_never_held_are_found(stand: Stand) -> None:
    columns = "* REPLACE (10000000 AS kafka_offset)"
    stand.clickhouse.execute(
        f"INSERT INTO {SCORED_TABLE} SELECT {columns} FROM {SCORED_TABLE} "
        "WHERE decision = 'approve' LIMIT 1"
    )
    result, said = command(stand)
    assert result.exit_code == 1
    assert said["unexpected"] == 1
    assert said["unexpected_at"][0]["offset"] == 10_000_000
    stand.clickhouse.execute(f"DELETE FROM {SCORED_TABLE} WHERE kafka_offset = 10000000")
    assert command(stand)[0].exit_code == 0


def test_alerts_that_are_gone_are_found_raised_again_and_equal_to_the_lost_ones(
    stand: Stand,
) -> None:
    before = {alert["alert_id"]: alert for _, _, alert in alerts(stand)}
    partition, first, _ = alerts(stand)[0]
    drop_alerts(stand, partition, first + 10)
    kept = {alert["alert_id"] for _, _, alert in alerts(stand)}
    lost = before.keys() - kept
    assert lost
    result, said = command(stand)
    assert result.exit_code == 1
    assert said["alerts_wrong"] == len(lost)
    assert {(at["partition"], at["offset"]) for at in said["alerts_missing"]} == {
        (before[name]["source"]["partition"], before[name]["source"]["offset"]) for name in lost
    }
    newest = max(before[name]["decided_at_ms"] for name in lost)
    stand.wait(
        "alerts that cannot be on their way any more",
        lambda: time.time_ns() // 1_000_000 > newest + EXPIRY_MARGIN_MS,
    )
    result, said = command(stand, "--repair=dry-run")
    assert (result.exit_code, said["can_be_raised_again"], said["not_raised"]) == (1, len(lost), [])
    assert {alert["alert_id"] for _, _, alert in alerts(stand)} == kept
    result, said = command(stand, "--repair=publish")
    assert (result.exit_code, said["raised_again"], said["clean"]) == (0, len(lost), True)
    after = {alert["alert_id"]: alert for _, _, alert in alerts(stand)}
    assert after.keys() == before.keys()
    for name in lost:
        assert after[name]["attributes"].pop(MARK) == "true"
        assert after[name] == before[name]
    result, said = command(stand, "--repair=publish")
    assert (result.exit_code, said["raised_again"]) == (0, 0)


def test_a_transaction_longer_than_the_brokers_allow_is_refused_before_the_job(
    stand: Stand,
) -> None:
    most = broker_number(stand.settings.kafka, "transaction.max.timeout.ms")
    assert most is not None
    flink = {"delivery": "exactly-once", "transaction_timeout_ms": most + 1}
    settings = stand.settings.model_copy(
        update={"flink": stand.settings.flink.model_copy(update=flink)}
    )
    with pytest.raises(ConfigurationError, match=f"the brokers allow at most {most}"):
        prepare(settings)


def test_forged_alerts_are_found_with_their_places(stand: Stand) -> None:
    _, _, real = alerts(stand)[-1]
    (approved,) = stand.clickhouse.rows(
        "SELECT kafka_topic AS topic, kafka_partition AS partition, kafka_offset AS offset "
        "FROM scored_transactions WHERE decision = 'approve' LIMIT 1"
    )
    publish_alert(stand, {**real, "alert_id": "0" * 32})
    publish_alert(stand, {**real, "alert_id": "1" * 32, "source": approved})
    publish_alert(stand, {**real, "alert_id": "2" * 32, "source": {**approved, "offset": 10**8}})
    producer = Producer(librdkafka_config(stand.settings.kafka))
    producer.produce(stand.settings.kafka.topics.name("alerts"), b"no alert at all")
    assert producer.flush(30) == 0
    result, said = command(stand)
    assert result.exit_code == 1
    assert said["alerts_misnamed"] == [real["source"]]
    assert said["alerts_unexpected"] == [approved]
    assert said["alerts_wrong"] == 2
    assert said["unexpected"] == 2
    assert {at["topic"] for at in said["unexpected_at"]} == {
        approved["topic"],
        stand.settings.kafka.topics.name("alerts"),
    }
