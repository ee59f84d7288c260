"""Publish drift alerts on their own topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from connectors.confirmed import Message, publish_confirmed
from connectors.settings import Settings
from schemas.avro import RecordEncoder
from schemas.contract import contract
from schemas.registry import open_registry, value_subject

__all__ = ["publish_drift_alerts"]


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
    times = ("published_at_ms", "ingested_at_ms", "decided_at_ms")
    messages = [
        Message(
            str(alert["entity_id"]).encode(),
            encoder.encode(
                {
                    **alert,
                    "rule_set_version": "",
                    "source": {"topic": "", "partition": -1, "offset": -1},
                    **dict.fromkeys(times, now_ms),
                }
            ),
            (("alert_id", str(alert["alert_id"]).encode()),),
        )
        for alert in alerts
    ]
    publish_confirmed(settings.kafka, topic, messages, f"{len(alerts)} drift alerts")
