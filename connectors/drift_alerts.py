"""Publish drift alerts on their own topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import confluent_kafka

from connectors.kafka import librdkafka_config
from connectors.settings import Settings
from schemas.avro import RecordEncoder
from schemas.contract import contract
from schemas.errors import RetryableError
from schemas.registry import open_registry, value_subject

__all__ = ["publish_drift_alerts"]

_DELIVERY_SECONDS: Final = 30.0


def publish_drift_alerts(
    settings: Settings, alerts: Sequence[Mapping[str, Any]], now_ms: int
) -> None:
    """Publish alerts of `models.drift.drift_alerts` and return when Kafka has confirmed them.

    No single record raised them, so `source` names no topic and partition and offset are -1; the
    three times are `now_ms`. Publishing an alert again repeats its id.

    Raises:
        RetryableError: when Kafka did not confirm them within half a minute.
    """
    if not alerts:
        return
    topic = settings.kafka.topics.name("drift_alerts")
    text = contract("alert")
    encoder = RecordEncoder(
        text, open_registry(settings.schemas).register(value_subject(topic), text)
    )
    failures: list[str] = []

    def report(error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message) -> None:
        if error is not None:
            failures.append(error.str())

    producer = confluent_kafka.Producer(
        {
            **librdkafka_config(settings.kafka),
            "enable.idempotence": True,
            "message.timeout.ms": int(_DELIVERY_SECONDS * 1000),
        }
    )
    times = ("published_at_ms", "ingested_at_ms", "decided_at_ms")
    for alert in alerts:
        whole = {
            **alert,
            "rule_set_version": "",
            "source": {"topic": "", "partition": -1, "offset": -1},
            **dict.fromkeys(times, now_ms),
        }
        producer.produce(
            topic,
            encoder.encode(whole),
            str(alert["entity_id"]).encode(),
            headers=[("alert_id", str(alert["alert_id"]).encode())],
            on_delivery=report,
        )
    if producer.flush(_DELIVERY_SECONDS) or failures:
        reason = failures[0] if failures else "no answer"
        msg = f"publishing {len(alerts)} drift alerts to {topic!r}: {reason}; is Kafka up?"
        raise RetryableError(msg)
