"""Records handed to librdkafka arrive as they were, through either publisher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import numpy as np
import pytest

from connectors.producers._librdkafka import Librdkafka, find_library
from connectors.producers.publisher import (
    DeliveryError,
    KafkaPublisher,
    NativePublisher,
    bulk_publisher,
    event_time_of,
)
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """A broker inside librdkafka, shared by the producers and consumers of this process."""
    owner = confluent_kafka.Producer(
        {"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0}
    )
    metadata = owner.list_topics(timeout=10)
    (broker,) = metadata.brokers.values()
    yield f"{broker.host}:{broker.port}"
    owner.close()


def _native(configuration: dict[str, object]) -> NativePublisher:
    library = find_library()
    assert library is not None
    return NativePublisher(library, configuration)


def _read(broker: str, topic: str, count: int) -> list[confluent_kafka.Message]:
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": topic,
            "log_level": 0,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    read: list[confluent_kafka.Message] = []
    for _ in range(300):
        read += [m for m in consumer.consume(count, 0.1) if m.error() is None]
        if len(read) >= count:
            break
    consumer.close()
    return read


@pytest.mark.parametrize("make", [KafkaPublisher, _native], ids=["python", "native"])
def test_keys_values_headers_and_nulls_arrive_as_they_were(
    broker: str, make: Callable[[dict[str, object]], Any], request: pytest.FixtureRequest
) -> None:
    topic = f"whole-{request.node.callspec.id}"
    keys: list[str | None] = [f"customer {i % 50}" for i in range(2_000)]
    values: list[str | None] = [f"value {i} \0 é" for i in range(2_000)]
    values[7], values[8], keys[9] = None, "", None
    times = np.arange(2_000) * 86_400_000 - 5
    publisher = make({"bootstrap.servers": broker, "log_level": 0})
    publisher.publish(topic, StringColumn.from_texts(keys), StringColumn.from_texts(values), times)
    publisher.flush()
    publisher.close()
    got = {event_time_of(m.headers()): (m.key(), m.value()) for m in _read(broker, topic, 2_000)}
    raw = [
        (None if k is None else k.encode(), None if v is None else v.encode())
        for k, v in zip(keys, values, strict=True)
    ]
    assert got == dict(zip(times.tolist(), raw, strict=True))


@pytest.mark.parametrize("make", [KafkaPublisher, _native], ids=["python", "native"])
def test_kafka_timestamps_are_those_given_or_the_clock_s(
    broker: str, make: Callable[[dict[str, object]], Any], request: pytest.FixtureRequest
) -> None:
    topic = f"stamped-{request.node.callspec.id}"
    text = StringColumn.from_texts([str(i) for i in range(20)])
    given = 1_700_000_000_000 + np.arange(20) * 7
    publisher = make({"bootstrap.servers": broker, "log_level": 0})
    began = int(time.time() * 1000)
    publisher.publish(topic, text, text, np.zeros(20, np.int64), given)
    publisher.publish(f"{topic}-now", text, text, np.zeros(20, np.int64))
    publisher.flush()
    publisher.close()
    stamps = {int(m.key() or b""): m.timestamp()[1] for m in _read(broker, topic, 20)}
    assert stamps == dict(enumerate(given.tolist()))
    ended = int(time.time() * 1000)
    assert all(began <= m.timestamp()[1] <= ended for m in _read(broker, f"{topic}-now", 20))


def test_both_publishers_choose_the_same_partition_for_a_key(broker: str) -> None:
    keys = StringColumn.from_texts([f"c{i}" for i in range(300)])
    chosen = []
    for topic, publisher in (
        ("same-python", KafkaPublisher({"bootstrap.servers": broker, "log_level": 0})),
        ("same-native", bulk_publisher({"bootstrap.servers": broker, "log_level": 0})),
    ):
        publisher.publish(topic, keys, keys, np.zeros(300, np.int64))
        publisher.flush()
        publisher.close()
        chosen.append({m.key(): m.partition() for m in _read(broker, topic, 300)})
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0].values())) > 1


@pytest.mark.parametrize("make", [KafkaPublisher, _native], ids=["python", "native"])
def test_records_that_no_broker_takes_are_reported(
    make: Callable[[dict[str, object]], Any],
) -> None:
    publisher = make({"bootstrap.servers": "127.0.0.1:9", "message.timeout.ms": 50, "log_level": 0})
    text = StringColumn.from_texts(["x"] * 3)
    publisher.publish("nowhere", text, text, np.zeros(3, np.int64))
    with pytest.raises(DeliveryError, match="not delivered"):
        publisher.flush()
    publisher.close()


def test_a_record_too_large_for_kafka_is_refused_at_once(broker: str) -> None:
    publisher = _native({"bootstrap.servers": broker, "log_level": 0})
    key = StringColumn.from_texts(["k"])
    with pytest.raises(DeliveryError, match=r"(?i)size"):
        publisher.publish(
            "large", key, StringColumn.from_texts(["v" * 2_000_000]), np.zeros(1, np.int64)
        )
    publisher.close()


def test_a_full_queue_waits_and_loses_nothing(broker: str) -> None:
    library = find_library()
    assert library is not None
    raw = Librdkafka(
        library, {"bootstrap.servers": broker, "queue.buffering.max.messages": 100, "linger.ms": 1}
    )
    text = StringColumn.from_texts([str(i) for i in range(1_000)])
    row, refusals = 0, 0
    while row < 1_000:
        row, code = raw.produce("narrow", text, text, b"event_time_ms", np.arange(1_000), None, row)
        refusals += code != 0
        raw.poll(5)
    while raw.flush(1_000):
        pass
    raw.close()
    assert refusals > 0
    assert {m.value() for m in _read(broker, "narrow", 1_000)} == {
        str(i).encode() for i in range(1_000)
    }


def test_a_setting_that_librdkafka_does_not_know_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.setting"):
        _native({"no.such.setting": 1})
