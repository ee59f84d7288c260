"""Publish encoded records to Kafka, and answer for every one of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import confluent_kafka
import numpy as np
from numpy.typing import NDArray

from connectors.producers._librdkafka import QUEUE_FULL, Librdkafka, find_library
from connectors.producers.strings import to_bytes
from schemas.columns import StringColumn
from schemas.errors import FatalError

__all__ = [
    "EVENT_TIME_HEADER",
    "DeliveryError",
    "KafkaPublisher",
    "NativePublisher",
    "Publisher",
    "RecordLog",
    "bulk_publisher",
    "event_time_of",
]

EVENT_TIME_HEADER: Final = "event_time_ms"
"""Header with the event time, 8 bytes little-endian, by which the source aligns partitions."""

# How long a record may wait for company, librdkafka's own. With 10 ms the broker needs a seventh
# less CPU at 5,000/s, and the median payment waits up to 5 ms longer (docs/decisions/0012).
LINGER_MS: Final = 5.0
# librdkafka serves errors and queue space only when polled; every 10,000 records costs nothing.
_POLL_EVERY: Final = 10_000
_QUEUE_WAIT_SECONDS: Final = 0.01


class DeliveryError(FatalError):
    """Kafka refused records, or did not confirm them in time; the message counts them."""


class Publisher(Protocol):
    """Takes encoded records for a topic."""

    def publish(
        self,
        topic: str,
        keys: StringColumn,
        values: StringColumn,
        event_time_ms: NDArray[np.int64],
    ) -> None:
        """Hand over records in order; waits while the queue is full."""

    def flush(self) -> None:
        """Return when everything handed over is confirmed."""


class KafkaPublisher:
    """Publishes through librdkafka, idempotent and acknowledged by all replicas.

    Keys choose partitions as the Java client does (murmur2), so that all producers of a key agree.
    Kafka timestamps are the wall clock of the hand-over unless given. A full queue makes `publish`
    wait.

    Args:
        configuration: librdkafka settings of the connection (see `connectors.kafka`).
        linger_ms: how long a record may wait for company; 0 sends at once.

    Raises:
        DeliveryError: from `publish` or `flush`, when any earlier record was not delivered.
    """

    def __init__(
        self, configuration: Mapping[str, object], *, linger_ms: float = LINGER_MS
    ) -> None:
        self._failed = 0
        self._first_error: confluent_kafka.KafkaError | None = None
        self._producer = confluent_kafka.Producer(
            {
                **_settings(configuration, linger_ms),
                "delivery.report.only.error": True,
                "on_delivery": self._report,
            }
        )

    def publish(
        self,
        topic: str,
        keys: StringColumn,
        values: StringColumn,
        event_time_ms: NDArray[np.int64],
        timestamps_ms: NDArray[np.int64] | None = None,
    ) -> None:
        """Hand over records in order; waits while the queue is full."""
        stamps = event_time_ms.astype("<i8").tobytes()
        times = [0] * len(values) if timestamps_ms is None else timestamps_ms.tolist()
        produce = self._producer.produce
        rows = zip(to_bytes(keys), to_bytes(values), strict=True)
        for index, (key, value) in enumerate(rows):
            headers: list[tuple[str, str | bytes | None]] = [
                (EVENT_TIME_HEADER, stamps[index * 8 : index * 8 + 8])
            ]
            while True:
                try:
                    produce(topic, value, key, timestamp=times[index], headers=headers)
                    break
                except BufferError:
                    self._producer.poll(_QUEUE_WAIT_SECONDS)
                    self._check()
            if index % _POLL_EVERY == 0:
                self._producer.poll(0)
        self._check()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, str | bytes | None]],
    ) -> None:
        """Hand over one record with its own headers (tools; bulk goes through `publish`)."""
        self._producer.produce(topic, value, key, headers=headers)
        self._producer.poll(0)
        self._check()

    def flush(self) -> None:
        """Return when everything handed over is confirmed."""
        while self._producer.flush(1.0):
            self._check()
        self._check()

    def close(self) -> None:
        """Free the connection; what was not flushed is lost."""
        self._producer.close()

    def _report(self, error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message) -> None:
        if error is not None:
            self._failed += 1
            self._first_error = self._first_error or error

    def _check(self) -> None:
        if self._first_error is not None:
            raise _not_delivered(self._failed, self._first_error.str())


class NativePublisher:
    """Publishes as `KafkaPublisher` does, through compiled calls: a tenth of the CPU a record.

    For the bulk of a replay or a simulation. Made by `bulk_publisher`, which falls back to
    `KafkaPublisher` where the shared library cannot be found.

    Raises:
        DeliveryError: from `publish` or `flush`, when any earlier record was not delivered.
    """

    def __init__(
        self, library: Path, configuration: Mapping[str, object], *, linger_ms: float = LINGER_MS
    ) -> None:
        self._library = Librdkafka(library, _settings(configuration, linger_ms))

    def publish(
        self,
        topic: str,
        keys: StringColumn,
        values: StringColumn,
        event_time_ms: NDArray[np.int64],
        timestamps_ms: NDArray[np.int64] | None = None,
    ) -> None:
        """Hand over records in order; waits while the queue is full."""
        row, count = 0, len(values)
        name = EVENT_TIME_HEADER.encode()
        while row < count:
            row, code = self._library.produce(
                topic, keys, values, name, event_time_ms, timestamps_ms, row
            )
            if code == QUEUE_FULL:
                self._library.poll(round(_QUEUE_WAIT_SECONDS * 1000))
                self._check()
            elif code:
                msg = f"publishing to topic {topic!r}: {self._library.explain(code)}"
                raise DeliveryError(msg)
        self._library.poll(0)
        self._check()

    def flush(self) -> None:
        """Return when everything handed over is confirmed."""
        while self._library.flush(1_000):
            self._check()
        self._check()

    def close(self) -> None:
        """Free the connection; what was not flushed is lost."""
        self._library.close()

    def _check(self) -> None:
        if self._library.failed:
            raise _not_delivered(
                self._library.failed, self._library.explain(self._library.first_error)
            )


def bulk_publisher(
    configuration: Mapping[str, object], *, linger_ms: float = LINGER_MS
) -> KafkaPublisher | NativePublisher:
    """Return the fastest publisher that this installation has."""
    library = find_library()
    if library is None:
        return KafkaPublisher(configuration, linger_ms=linger_ms)
    return NativePublisher(library, configuration, linger_ms=linger_ms)


class RecordLog:
    """A publisher that keeps records in memory: for tests and for a look without a broker."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes | None, bytes | None, int]] = []
        """(topic, key, value, event time in ms) in publishing order."""

    def publish(
        self,
        topic: str,
        keys: StringColumn,
        values: StringColumn,
        event_time_ms: NDArray[np.int64],
    ) -> None:
        """Keep the records."""
        rows = zip(to_bytes(keys), to_bytes(values), event_time_ms.tolist(), strict=True)
        self.records += [(topic, key, value, time_ms) for key, value, time_ms in rows]

    def flush(self) -> None:
        """Do nothing: records are kept at once."""


def event_time_of(headers: list[tuple[str, bytes | None]] | None) -> int | None:
    """Return the event time in a record's headers, or None where there is none."""
    for name, value in headers or []:
        if name == EVENT_TIME_HEADER and value is not None and len(value) == 8:
            return int(struct.unpack("<q", value)[0])
    return None


def _settings(configuration: Mapping[str, object], linger_ms: float) -> dict[str, object]:
    return {
        **configuration,
        "enable.idempotence": True,
        # An idempotent librdkafka sends no second request of a partition before the first is
        # answered, and when that takes longer than the linger it asks without a pause whether it
        # may (`rd_kafka_toppar_producer_serve`): a third of a core on a busy machine. With one
        # request a connection, the next one waits in its output queue instead, and it sleeps.
        "max.in.flight.requests.per.connection": 1,
        "partitioner": "murmur2_random",
        "linger.ms": linger_ms,
        "batch.size": 1024 * 1024,
        # About 10 s of the highest rate: enough to ride over a broker's pause, and below 300 MB
        # with records of 200 bytes.
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 256 * 1024,
    }


def _not_delivered(count: int, reason: str) -> DeliveryError:
    msg = (
        f"publishing to Kafka: {count} record(s) were not delivered so far, the first because of "
        f"{reason!r}; what was confirmed before stays published"
    )
    return DeliveryError(msg)
