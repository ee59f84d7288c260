"""`riskstream rules`, and the control record that it publishes."""

from __future__ import annotations

import json
from pathlib import Path

import confluent_kafka
import pytest
from click.testing import CliRunner

from connectors.control import encode_control, publish_control
from connectors.settings import Settings, load_settings
from jobs.cli.main import cli
from jobs.cli.rules import RULES_ARGUMENT
from jobs.fraud.rule_columns import rule_catalogue
from jobs.rules.ruleset import RuleSet
from models.control import make_control
from schemas.errors import RetryableError

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "jobs/fraud/rules.yaml"
WRONG = "format: 1\nname: x\nrules: [{id: a, title: b, when: amont > 1, then: shoot}]"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["rules", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_good_file_is_listed_and_its_version_told() -> None:
    code, out, err = run("check", RULES)
    assert code == 0
    assert "review  payment_burst" in out
    assert "off     trusted_customers" in out
    assert RuleSet.load(RULES, rule_catalogue()).version in err


def test_a_wrong_file_exits_with_1_and_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(WRONG, encoding="utf-8")
    code, out, err = run("check", file)
    assert (code, out) == (1, "")
    assert "did you mean 'amount'" in err
    assert "then must be one of" in err
    code, out, _ = run("check", file, "--json")
    assert code == 1
    assert len(json.loads(out)["problems"]) == 2


def test_json_describes_the_rule_set() -> None:
    code, out, _ = run("check", RULES, "--json")
    described = json.loads(out)
    assert code == 0
    assert described["ok"] is True
    assert {"id": "payment_burst", "then": "review", "weight": 50} in described["rules"]


def test_the_columns_that_rules_may_name_are_listed() -> None:
    code, out, _ = run("columns", "--json")
    assert code == 0
    assert json.loads(out)["score"] == "number"
    assert "ecommerce" in run("columns")[1]


def test_publishing_without_yes_only_says_what_it_would_do() -> None:
    code, out, _ = run("publish", RULES, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["published"] is False
    assert "control_id" not in told


@pytest.fixture
def mock_kafka() -> tuple[Settings, confluent_kafka.Producer]:
    # librdkafka's own in-process broker: a real client talks to it over loopback.
    broker = confluent_kafka.Producer(
        {"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 1, "log_level": 0}
    )
    addresses = ",".join(f"{b.host}:{b.port}" for b in broker.list_topics().brokers.values())
    return load_settings(environment={}, overrides=[f"kafka.bootstrap_servers={addresses}"]), broker


def test_a_published_record_carries_the_rules_that_the_job_compiles(
    mock_kafka: tuple[Settings, confluent_kafka.Producer],
) -> None:
    settings, _broker = mock_kafka
    text = RULES.read_text(encoding="utf-8")
    record = make_control("activate_rules", "card-fraud/1", "me", 5, {RULES_ARGUMENT: text})
    publish_control(settings, record.to_record())
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "group.id": "test",
            "auto.offset.reset": "earliest",
        }
    )
    try:
        consumer.subscribe([settings.kafka.topics.name("control")])
        message = next(m for m in iter(lambda: consumer.poll(1.0), "") if m and not m.error())
    finally:
        consumer.close()
    assert message.key() == b"card-fraud/1"
    assert message.value() == encode_control(settings, record.to_record())
    assert text.encode() in message.value()


def test_a_kafka_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.confirmed._DELIVERY_SECONDS", 1.0)
    settings = load_settings(environment={}, overrides=["kafka.bootstrap_servers=127.0.0.1:1"])
    record = make_control("ping", "x", "me", 5)
    with pytest.raises(RetryableError, match="publishing a control record"):
        publish_control(settings, record.to_record())
