"""What the harness puts on the job's topics and finds there."""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaError, Producer

from connectors.evidence import ranges_of, read_range
from connectors.frames import event_time_header
from connectors.kafka import librdkafka_config
from connectors.settings import Settings
from jobs.fraud.accounts import DEAD_LETTER_LIMITS
from schemas.avro import RecordDecoder, RecordEncoder
from schemas.contract import contract
from schemas.registry import open_registry, stable_schema_id

__all__ = ["alert_records", "letters", "publish_payment"]

TIMEOUT_SECONDS = 60


def publish_payment(settings: Settings, customer: bytes, event_time_ms: int) -> None:
    """Publish one payment of a customer at a terminal that nobody else uses."""
    text = contract("card_transaction")
    payment = {
        "event_id": f"{customer.decode()}-{time.time_ns()}",
        "event_time_ms": event_time_ms,
        "customer_id": customer.decode(),
        "terminal_id": customer.decode(),
        "amount_minor": 100,
        "currency": "EUR",
    }
    producer = Producer(librdkafka_config(settings.kafka))
    producer.produce(
        settings.kafka.topics.name("transactions"),
        RecordEncoder(text, stable_schema_id(text)).encode(payment),
        customer,
        headers=[event_time_header(event_time_ms)],
    )
    assert producer.flush(TIMEOUT_SECONDS) == 0, "Kafka did not take the payment"


def letters(settings: Settings, reason: str) -> int:
    """Return how many records were dead-lettered for a reason, each counted once."""
    decoder = RecordDecoder(
        open_registry(settings.schemas), contract("dead_letter"), DEAD_LETTER_LIMITS
    )
    ranges = ranges_of(settings.kafka, settings.kafka.topics.name("dead_letters"))
    found = [decoder.decode(message.value()) for message in read_range(settings.kafka, ranges)]
    return len({(at["partition"], at["offset"]) for at in found if at["reason"] == reason})


def alert_records(settings: Settings, isolation: str) -> list[str]:
    """Return the id of each alert on the topic, as a consumer of this isolation level reads."""
    consumer = Consumer(
        {
            **librdkafka_config(settings.kafka),
            "group.id": f"faults-{isolation}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": isolation,
        }
    )
    found: list[str] = []
    ends: set[int] = set()
    consumer.subscribe([settings.kafka.topics.name("alerts")])
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while len(ends) < settings.kafka.topics.partitions:
            message = consumer.poll(0.5)
            assert time.monotonic() < deadline, f"the alerts ended in partitions {ends} only"
            if message is None:
                continue
            error = message.error()
            if error is None:
                found.append(dict(message.headers() or [])["alert_id"].decode())
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error.str()
                ends.add(message.partition())
    finally:
        consumer.close()
    return found
