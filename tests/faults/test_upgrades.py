"""Upgrades of a running job: savepoint, another release, resumed; or refused with the reason."""

from __future__ import annotations

import json
import time
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer

import jobs.fraud.in_force as in_force
from connectors.clickhouse import ClickHouseClient
from connectors.control import publish_control
from connectors.deployments import remember_deployment
from connectors.kafka import librdkafka_config
from connectors.migrations import migrate
from connectors.settings import Settings
from jobs.cli.main import cli
from jobs.fraud.resources import check_resume, facts
from jobs.submission import submit_job
from models.control import make_control
from schemas.avro import RecordEncoder
from schemas.contract import contract
from schemas.errors import ConfigurationError
from schemas.registry import open_registry, value_subject
from tests.faults.scenarios import RULES
from tests.faults.stand import Stand
from tests.faults.variants import LATER_FEATURES, NEXT_VERSION

pytestmark = [
    pytest.mark.faults,
    pytest.mark.matrix,
    pytest.mark.slow,
    pytest.mark.timeout(1_500),
]

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def stand(faults_stack: Settings) -> Iterator[Stand]:
    stand = Stand(faults_stack, "upgrade", rate=200.0)
    try:
        stand.start()
        yield stand
    finally:
        stand.stop()
        stand.renew_task_managers()


def plan(stand: Stand, *flags: str) -> tuple[Result, dict[str, Any]]:
    """Run `riskstream plan` as an operator would, against the live parts."""
    settings = stand.settings
    options = [
        f"home={settings.home}",
        f"kafka.topics.prefix={settings.kafka.topics.prefix}",
        f"clickhouse.database={settings.clickhouse.database}",
        f"schemas.registry={settings.schemas.registry}",
        f"models.registry={settings.models.registry}",
        *flags,
    ]
    arguments = [word for option in options for word in ("--set", option)]
    result = CliRunner().invoke(cli, [*arguments, "plan", "--json"], catch_exceptions=False)
    return result, json.loads(result.stdout)


def refused(found: dict[str, Any]) -> list[str]:
    return [one["text"] for one in found["findings"] if one["level"] == "refused"]


def rows_since(stand: Stand, published_ms: int) -> int:
    return stand.one(f"SELECT count() AS n FROM {{v}} WHERE published_at_ms > {published_ms}")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_an_optional_field_may_be_added_while_the_job_runs(stand: Stand) -> None:
    registry = open_registry(stand.settings.schemas)
    schema = json.loads(contract("card_transaction"))
    schema["fields"].append({"name": "device", "type": ["null", "string"], "default": None})
    text = json.dumps(schema)
    topics = stand.settings.kafka.topics
    encoder = RecordEncoder(text, registry.register(value_subject(topics.transactions), text))
    newest = stand.one("SELECT max(event_time_ms) AS n FROM {v}")
    producer = Producer(librdkafka_config(stand.settings.kafka))
    for number in range(20):
        payment = {
            "event_id": f"wider-{number}",
            "event_time_ms": newest,
            "customer_id": "wider",
            "terminal_id": "wider",
            "amount_minor": 100,
            "currency": "EUR",
            "device": "a phone",
        }
        header = ("event_time_ms", newest.to_bytes(8, "little"))
        producer.produce(
            topics.name("transactions"), encoder.encode(payment), b"wider", headers=[header]
        )
    assert producer.flush(30) == 0
    counted = "SELECT max(customer_count_1d) AS n FROM {v} WHERE customer_id = 'wider'"
    stand.wait("payments with the new field", lambda: stand.one(counted) == 20, 60)
    result, found = plan(stand)
    assert result.exit_code == 0, "the release reads both versions"
    assert found["safe"]


def test_plan_refuses_what_would_lose_state_and_touches_nothing(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stand.one("SELECT count() AS n FROM deployments")
    assert plan(stand)[1]["safe"]
    result, found = plan(stand, "flink.shards=8")
    assert result.exit_code == 1
    assert f"set it back to {stand.settings.flink.shards}" in refused(found)[0]
    result, found = plan(stand, "flink.max_parallelism=256")
    assert result.exit_code == 1
    assert "flink.max_parallelism" in refused(found)[0]
    result, found = plan(stand, "flink.parallelism=1")
    assert result.exit_code == 0
    assert any("shards move whole" in one["text"] for one in found["findings"])

    rules = make_control(
        "activate_rules", "kept", "test", now_ms(), {"rules": RULES.format(number=1, amount=900)}
    )
    publish_control(stand.settings, rules.to_record())
    applied = (
        f"SELECT uniqExact(shard) AS n FROM control_outcomes WHERE control_id = "
        f"'{rules.control_id}' AND outcome = 'applied'"
    )
    shards = stand.settings.flink.shards
    stand.wait("the rules on every shard", lambda: stand.one(applied) == shards, 60)
    columns = in_force.rule_catalogue()
    monkeypatch.setattr(
        in_force, "rule_catalogue", lambda: {k: v for k, v in columns.items() if k != "amount"}
    )
    result, found = plan(stand)
    assert result.exit_code == 1
    assert "amount" in refused(found)[0]
    with pytest.raises(ConfigurationError, match="cannot read"):
        check_resume(stand.settings)
    assert stand.one("SELECT count() AS n FROM deployments") == before


def test_feature_rule_model_and_parallelism_change_over_a_savepoint(stand: Stand) -> None:
    twin = stand.other_model()
    model = make_control("activate_model", twin, "test", now_ms())
    publish_control(stand.settings, model.to_record())
    told = f"SELECT count() AS n FROM control_outcomes WHERE control_id = '{model.control_id}'"
    shards = stand.settings.flink.shards
    stand.wait("the new model on every shard", lambda: stand.one(told) >= shards, 120)
    outcomes = stand.clickhouse.rows(
        f"SELECT DISTINCT outcome, detail FROM control_outcomes "
        f"WHERE control_id = '{model.control_id}'"
    )
    assert [row["outcome"] for row in outcomes] == ["applied"], outcomes

    savepoint = stand.cluster.savepoint(stand.job_id, None, stop=True)
    stopped_ms = now_ms()
    client = ClickHouseClient(stand.settings.clickhouse)
    migrate(client, LATER_FEATURES.names)
    stand.job_settings = stand.settings.model_copy(
        update={"flink": stand.settings.flink.model_copy(update={"parallelism": 1})}
    )
    stand.variant = "later-features"
    stand.submit(savepoint)
    stand.wait("payments after it", lambda: rows_since(stand, stopped_ms) > 1_000)
    vertices = stand.cluster.job(stand.job_id)["vertices"]
    assert {vertex["parallelism"] for vertex in vertices} == {1}

    rows = client.rows(
        "SELECT customer_id, event_time_ms, customer_count_2d AS n, model_version, "
        "rule_set_version, published_at_ms FROM scored_transactions "
        "WHERE customer_id != 'wider' ORDER BY kafka_partition, kafka_offset"
    )
    later = []
    times: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        at, seen = row["event_time_ms"], times[row["customer_id"]]
        insort(seen, at)
        if row["published_at_ms"] > stopped_ms:
            later.append(row)
            expected = bisect_right(seen, at) - bisect_right(seen, at - 2 * DAY_MS)
            assert row["n"] == expected, "the new feature must see what came before the savepoint"
    first = {row["customer_id"] for row in rows if row["published_at_ms"] <= stopped_ms}
    assert any(row["customer_id"] in first and row["n"] > 1 for row in later)
    assert {row["model_version"] for row in later} == {twin}
    assert len({row["rule_set_version"] for row in later}) == 1
    assert {row["rule_set_version"] for row in later} != {rows[0]["rule_set_version"]}


def test_the_next_state_format_takes_up_the_old_one_and_refuses_to_go_back(stand: Stand) -> None:
    savepoint = stand.cluster.savepoint(stand.job_id, None, stop=True)
    stopped_ms = now_ms()
    stand.variant = "next-state-format"
    stand.job_settings = stand.settings
    stand.submit(savepoint)
    stand.wait("payments after it", lambda: rows_since(stand, stopped_ms) > 1_000)
    stand.load.stop()
    assert stand.audit(whole=True).clean
    assert stand.different_features() == []

    newer = {**facts(stand.settings).as_dict(), "state_format": NEXT_VERSION}
    remember_deployment(ClickHouseClient(stand.settings.clickhouse), "fraud", newer)
    savepoint = stand.cluster.savepoint(stand.job_id, None, stop=True)
    result, found = plan(stand)
    assert result.exit_code == 1
    assert "cannot be read by this release" in refused(found)[0]
    with pytest.raises(ConfigurationError, match="cannot be read by this release"):
        submit_job("fraud", stand.settings, savepoint=savepoint)
