"""What people read from the topics: alerts as they come, dead letters without their contents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import pytest
from click.testing import CliRunner, Result

from connectors.settings import TopicSettings
from jobs.cli.main import cli
from schemas.avro import RecordEncoder
from schemas.contract import contract
from schemas.registry import stable_schema_id

Run = Callable[..., Result]
TOPICS = TopicSettings()


def _encode(name: str, record: dict[str, Any]) -> bytes:
    text = contract(name)
    return RecordEncoder(text, stable_schema_id(text)).encode(record)


def _alert(number: int, decision: str) -> bytes:
    return _encode(
        "alert",
        {
            "alert_id": f"a{number}", "kind": "fraud", "severity": "critical",
            "entity_type": "customer", "entity_id": "596", "event_id": f"e{number}",
            "event_time_ms": 1_522_540_831_000, "score": 0.97, "threshold": 0.9,
            "decision": decision, "amount_minor": 57_160, "currency": "EUR",
            "reasons": [{"code": "big", "kind": "rule", "text": "Amount above 220"}],
            "model_version": "m1", "rule_set_version": "r1",
            "source": {"topic": "t", "partition": 0, "offset": number},
            "published_at_ms": 1_000, "ingested_at_ms": 1_004, "decided_at_ms": 1_012,
        },
    )  # fmt: skip


TRANSACTION = _encode(
    "card_transaction",
    {
        "event_id": "e1", "event_time_ms": 1, "customer_id": "596", "terminal_id": "7",
        "amount_minor": -5, "currency": "EUR", "card_number": "4111111111111111",
    },
)  # fmt: skip


def _letter(reason: str, value: bytes | None, attempt: int = 0) -> bytes:
    return _encode(
        "dead_letter",
        {
            "topic": TOPICS.transactions, "partition": 0, "offset": 5, "timestamp_ms": 2,
            "key": b"596", "value": value, "headers": [{"name": "trace", "value": b"\x01"}],
            "reason": reason, "detail": "amount -5 of 4111111111111111", "schema_id": None,
            "stage": "intake", "job": "fraud", "failed_at_ms": 1_700_000_000_000,
            "attempt": attempt,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    owner = confluent_kafka.Producer(
        {"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0}
    )
    (found,) = owner.list_topics(timeout=10).brokers.values()
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": f"{found.host}:{found.port}", "log_level": 0}
    )
    for number, decision in enumerate(("review", "block", "review")):
        producer.produce(TOPICS.alerts, _alert(number, decision), partition=0)
    producer.produce(TOPICS.alerts, b"not avro", partition=0)
    big = b"x" * 200_000
    for letter in (
        _letter("negative_amount", TRANSACTION),
        _letter("oversized", big),
        _letter("null_value", None, attempt=3),
    ):
        producer.produce(TOPICS.dead_letters, letter, partition=0)
    producer.produce(TOPICS.market_dead_letters, _letter("bad_scale", b"a fill"), partition=0)
    producer.produce(TOPICS.limit_alerts, _alert(7, "breach"), partition=0)
    producer.produce(TOPICS.transactions, b"first", partition=0)
    producer.flush(10)
    yield f"{found.host}:{found.port}"
    producer.close()
    owner.close()


@pytest.fixture
def run(broker: str) -> Run:
    def call(*arguments: str) -> Result:
        settings = (
            f"kafka.bootstrap_servers={broker}", "redis.url=redis://127.0.0.1:9",
            "clickhouse.url=http://127.0.0.1:9", "flink.rest_url=http://127.0.0.1:9",
        )  # fmt: skip
        flags = [word for setting in settings for word in ("--set", setting)]
        return CliRunner().invoke(cli, [*flags, *arguments], catch_exceptions=False)

    return call


def test_alerts_are_printed_as_lines_that_say_what_and_why(run: Run) -> None:
    result = run("alerts", "tail", "--from-beginning", "--count", "1", "--timeout", "10")
    assert result.exit_code == 0
    assert result.stdout.strip() == (
        "2018-04-01 00:00:31.000  review  0.970  customer 596  571.60 EUR  12 ms  Amount above 220"
    )


def test_alerts_as_json_can_be_filtered_and_a_bad_one_is_passed_over(run: Run) -> None:
    result = run("alerts", "tail", "--from-beginning", "--json", "--decision", "block",
                 "--timeout", "2")  # fmt: skip
    assert [json.loads(line)["alert_id"] for line in result.stdout.splitlines()] == ["a1"]
    assert "unreadable" in result.stderr


def test_too_few_alerts_before_the_time_out_is_a_failure(run: Run) -> None:
    result = run("alerts", "tail", "--count", "1", "--timeout", "0.5")
    assert result.exit_code == 1
    assert "0 of 1" in result.stderr


def test_a_list_of_dead_letters_shows_nothing_of_their_contents(run: Run) -> None:
    result = run("dead-letters", "list", "--json")
    listed = [json.loads(line) for line in result.stdout.splitlines()]
    assert [item["reason"] for item in listed] == ["negative_amount", "oversized", "null_value"]
    assert [item["value_bytes"] for item in listed] == [len(TRANSACTION), 200_000, None]
    assert "4111" not in result.stdout
    assert "596" not in result.stdout
    assert "negative_amount 1" in result.stderr


def test_alerts_and_dead_letters_of_the_market_are_shown_by_name(run: Run) -> None:
    listed = run("dead-letters", "--job", "market_risk", "list", "--json")
    assert [json.loads(line)["reason"] for line in listed.stdout.splitlines()] == ["bad_scale"]
    shown = json.loads(run("dead-letters", "--job", "market_risk", "show", "0:0", "--json").stdout)
    assert shown["reason"] == "bad_scale"
    alerts = run("alerts", "tail", "--limits", "--from-beginning", "--json", "--timeout", "2")
    assert [json.loads(line)["alert_id"] for line in alerts.stdout.splitlines()] == ["a7"]


def test_letters_are_chosen_by_reason(run: Run) -> None:
    result = run("dead-letters", "list", "--reason", "oversized")
    assert len(result.stdout.splitlines()) == 1


def test_a_shown_letter_is_decoded_with_sensitive_fields_masked(run: Run) -> None:
    shown = json.loads(run("dead-letters", "show", "0:0", "--json").stdout)
    assert shown["contents"]["amount_minor"] == -5
    assert shown["contents"]["card_number"] == "***"
    assert "4111" not in json.dumps(shown)
    raw = json.loads(run("dead-letters", "show", "0:0", "--json", "--raw").stdout)
    assert bytes.fromhex(raw["value_hex"]) == TRANSACTION
    unreadable = json.loads(run("dead-letters", "show", "0:1", "--json").stdout)
    assert "not readable" in unreadable["contents"]


def test_a_letter_that_is_not_there_is_a_failure(run: Run) -> None:
    assert run("dead-letters", "show", "0:99").exit_code == 1
    assert run("dead-letters", "replay", "0:99", "--yes").exit_code == 1


def test_a_replay_is_a_dry_run_until_it_is_told_to_send(run: Run, broker: str) -> None:
    dry = json.loads(run("dead-letters", "replay", "--all", "--json").stdout)
    assert dry == {"found": 3, "sent": 0, "too_many_attempts": 1, "dry_run": True}
    sent = json.loads(run("dead-letters", "replay", "0:0", "--yes", "--json").stdout)
    assert sent["sent"] == 1
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": broker, "group.id": "check", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([TOPICS.transactions])
    got: list[confluent_kafka.Message] = []
    for _ in range(200):
        got += [m for m in consumer.consume(10, 0.1) if m.error() is None]
        if len(got) == 2:
            break
    consumer.close()
    again = next(message for message in got if message.value() != b"first")
    assert (again.key(), again.value()) == (b"596", TRANSACTION)
    assert again.headers() == [("trace", b"\x01"), ("riskstream_attempt", b"1")]


def test_replay_needs_to_know_which_letters(run: Run) -> None:
    assert run("dead-letters", "replay").exit_code == 2
