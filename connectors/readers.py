"""Read topics for people: follow one as records come, or read what it holds now.

No consumer group is used and nothing is committed: looking never changes what a job reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from connectors.kafka import librdkafka_config
from connectors.settings import KafkaSettings
from schemas.errors import FatalError, RetryableError

__all__ = ["Record", "TopicReader", "TopicUnknown"]

_REQUEST_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.1


class TopicUnknown(FatalError):
    """There is no such topic; the message says how to make it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record; `headers` keeps order and repetitions."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class TopicReader:
    """Reads the committed records of a topic, all partitions, each in order.

    Args:
        settings: where Kafka is.
        topic: full name.

    Raises:
        TopicUnknown: when the topic does not exist.
        RetryableError: when Kafka does not answer.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self.topic = topic
        self._consumer = Consumer(
            {
                **librdkafka_config(settings),
                "group.id": "riskstream-reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                # People watch: a record must not wait for company.
                "fetch.wait.max.ms": 10,
                "log_level": 2,
            }
        )
        self._ends: dict[int, tuple[int, int]] = {}
        try:
            metadata = self._consumer.list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic]
            if metadata.error is not None:
                msg = (
                    f"reading topic {topic!r}: {metadata.error.str()}; is a job running, and is "
                    "kafka.topics.prefix right?"
                )
                self._consumer.close()
                raise TopicUnknown(msg)
            for number in sorted(metadata.partitions):
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, number), timeout=_REQUEST_SECONDS
                )
                self._ends[number] = (low, high)
        except KafkaException as e:
            self._consumer.close()
            msg = f"asking Kafka about topic {topic!r}: {e}; is it up?"
            raise RetryableError(msg) from e

    @property
    def held(self) -> int:
        """How many offsets the topic held when this was opened."""
        return sum(high - low for low, high in self._ends.values())

    def follow(
        self,
        *,
        from_beginning: bool = False,
        idle_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[Record]:
        """Yield records as they come, for ever.

        Args:
            from_beginning: start with the oldest record kept, rather than with the next one.
            idle_seconds: end when nothing came for so long; None never ends.
            clock: seconds that never go backwards.

        Raises:
            RetryableError: when Kafka reports an error that it does not recover from by itself.
        """
        self.start(from_beginning=from_beginning)
        heard = clock()
        while idle_seconds is None or clock() - heard < idle_seconds:
            record = self.poll(_POLL_SECONDS)
            if record is not None:
                heard = clock()
                yield record

    def start(self, *, from_beginning: bool = False) -> None:
        """Begin with the oldest record kept, or after the last that was there on opening."""
        self._consumer.assign(
            [
                TopicPartition(self.topic, number, OFFSET_BEGINNING if from_beginning else high)
                for number, (_, high) in self._ends.items()
            ]
        )

    def poll(self, seconds: float) -> Record | None:
        """Return the next record, or None when none came in time; `start` comes before.

        Raises:
            RetryableError: as `follow`.
        """
        message = self._consumer.poll(seconds)
        return _record(message) if message is not None and self._usable(message) else None

    def held_records(self) -> Iterator[Record]:
        """Yield what the topic held when this was opened, then end.

        Raises:
            RetryableError: when Kafka reports an error, or is silent for 15 s.
        """
        waiting = {number: high for number, (low, high) in self._ends.items() if high > low}
        self._consumer.assign(
            [TopicPartition(self.topic, number, self._ends[number][0]) for number in waiting]
        )
        heard = time.monotonic()
        while waiting:
            message = self._consumer.poll(_POLL_SECONDS)
            if message is not None and self._usable(message):
                heard = time.monotonic()
                record = _record(message)
                if record.partition in waiting and record.offset < waiting[record.partition]:
                    yield record
            # The position also passes markers of transactions, which are no records.
            for at in self._consumer.position([TopicPartition(self.topic, n) for n in waiting]):
                if at.offset >= waiting[at.partition]:
                    del waiting[at.partition]
            if time.monotonic() - heard > _REQUEST_SECONDS:
                msg = f"reading topic {self.topic!r}: nothing came for {_REQUEST_SECONDS:.0f} s"
                raise RetryableError(msg)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _usable(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.retriable() or error.code() == KafkaError._TRANSPORT:  # noqa: SLF001 - public name
            return False
        msg = f"reading topic {self.topic!r}: {error.str()}"
        raise RetryableError(msg)


def _record(message: Message) -> Record:
    _, timestamp_ms = message.timestamp()
    found = message.headers() or []
    headers = list(found.items()) if isinstance(found, dict) else found
    value, key = message.value(), message.key()
    return Record(
        topic=str(message.topic()),
        partition=int(message.partition() or 0),
        offset=int(message.offset() or 0),
        timestamp_ms=int(timestamp_ms),
        key=key if isinstance(key, bytes) or key is None else str(key).encode(),
        value=value if isinstance(value, bytes) or value is None else str(value).encode(),
        headers=tuple(
            (name, content if isinstance(content, bytes) or content is None else content.encode())
            for name, content in headers
        ),
    )
