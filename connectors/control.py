"""Publish control records: orders to a running job, in one order with its events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import confluent_kafka

import schemas
from connectors.kafka import librdkafka_config
from connectors.settings import Settings
from schemas.avro import RecordEncoder
from schemas.errors import RetryableError
from schemas.registry import FileRegistry, open_registry, stable_schema_id, value_subject

__all__ = ["encode_control", "publish_control"]

_CONTRACT: Final = Path(schemas.__file__).parent / "contracts" / "control.avsc"
_DELIVERY_SECONDS: Final = 30.0


def encode_control(settings: Settings, record: Mapping[str, object]) -> bytes:
    """Return a record of contract `control` with its wire header.

    Raises:
        EncodeError: when the record does not fit the contract.
    """
    text = _CONTRACT.read_text(encoding="utf-8")
    registry = open_registry(settings.schemas)
    # In a folder the id follows from the schema alone, and ours is committed there.
    schema_id = (
        stable_schema_id(text)
        if isinstance(registry, FileRegistry)
        else registry.register(value_subject(settings.kafka.topics.name("control")), text)
    )
    return RecordEncoder(text, schema_id).encode(record)


def publish_control(settings: Settings, record: Mapping[str, object]) -> None:
    """Publish one control record and return when Kafka has confirmed it.

    `settings` name a running Kafka; repeating a record is harmless.

    Raises:
        RetryableError: when Kafka did not confirm it within half a minute.
    """
    value = encode_control(settings, record)
    failures: list[str] = []

    def report(error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message) -> None:
        if error is not None:
            failures.append(error.str())

    producer = confluent_kafka.Producer(
        {
            **librdkafka_config(settings.kafka),
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.timeout.ms": int(_DELIVERY_SECONDS * 1000),
        }
    )
    topic = settings.kafka.topics.name("control")
    producer.produce(topic, value, str(record["subject"]).encode(), on_delivery=report)
    deadline = time.monotonic() + _DELIVERY_SECONDS + 1.0
    while producer.flush(0.5) and time.monotonic() < deadline:
        pass
    if failures or len(producer):
        reason = failures[0] if failures else "no answer"
        msg = f"publishing a control record to {topic!r}: {reason}; is Kafka up?"
        raise RetryableError(msg)
