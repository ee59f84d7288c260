"""Publish a few records and wait until Kafka has them: for commands, not for streams."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import confluent_kafka

from connectors.kafka import librdkafka_config
from connectors.settings import KafkaSettings
from schemas.errors import RetryableError

__all__ = ["Message", "publish_confirmed"]

_DELIVERY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Message:
    """One record to publish."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


def publish_confirmed(
    settings: KafkaSettings, topic: str, messages: Iterable[Message], what: str
) -> None:
    """Publish records in order and return when Kafka has confirmed all of them.

    Keys choose partitions as the Java client does (murmur2), so that all producers of a key agree.

    Args:
        settings: where Kafka is.
        topic: full name.
        messages: the records.
        what: they are, as the error names them.

    Raises:
        RetryableError: when Kafka did not confirm all of them within half a minute; some may be
            published.
    """
    failures: list[str] = []

    def report(error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message) -> None:
        if error is not None:
            failures.append(error.str())

    producer = confluent_kafka.Producer(
        {
            **librdkafka_config(settings),
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.timeout.ms": int(_DELIVERY_SECONDS * 1000),
        }
    )
    for message in messages:
        producer.produce(
            topic, message.value, message.key, headers=list(message.headers), on_delivery=report
        )
    deadline = time.monotonic() + _DELIVERY_SECONDS + 1.0
    while producer.flush(0.5) and time.monotonic() < deadline:
        pass
    if failures or len(producer):
        reason = failures[0] if failures else "no answer"
        msg = f"publishing {what} to {topic!r}: {reason}; is Kafka up?"
        raise RetryableError(msg)
