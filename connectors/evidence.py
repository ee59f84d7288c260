"""Read what `riskstream audit` compares: offsets and alerts in Kafka, rows in ClickHouse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from confluent_kafka import (
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from numpy.typing import NDArray

from connectors.clickhouse import ClickHouseClient
from connectors.kafka import librdkafka_config
from connectors.settings import KafkaSettings
from schemas.errors import FatalError, RetryableError

__all__ = [
    "EvidenceError",
    "OffsetRange",
    "ends_of",
    "ranges_of",
    "read_range",
    "stored_offsets",
    "stored_texts",
    "texts_where",
]

READ_TIMEOUT_SECONDS: Final = 30.0
# One fetch's worth: enough to keep the client's queue moving, little enough to report progress.
BATCH_MESSAGES: Final = 10_000
# The parameters of a query travel in its address, which servers cut at some tens of kilobytes.
PLACES_AT_ONCE: Final = 500


class EvidenceError(FatalError):
    """The evidence cannot be read as asked."""


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets `[first, last)` of one partition."""

    topic: str
    partition: int
    first: int
    last: int


def _consumer(settings: KafkaSettings) -> Consumer:
    return Consumer(
        {
            **librdkafka_config(settings),
            "group.id": "riskstream-audit",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # What a transaction left open or aborted was never delivered.
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,
        }
    )


def ranges_of(
    settings: KafkaSettings,
    topic: str,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
) -> list[OffsetRange]:
    """Return the offsets that each partition holds, or those published in `[since, until)`.

    Raises:
        EvidenceError: the topic does not exist.
        RetryableError: Kafka does not answer.
    """
    consumer = _consumer(settings)
    try:
        metadata = consumer.list_topics(topic, timeout=READ_TIMEOUT_SECONDS).topics[topic]
        if metadata.error is not None:
            msg = f"auditing topic {topic!r}: {metadata.error.str()}; is topics.prefix right?"
            raise EvidenceError(msg)
        ranges = []
        for partition in sorted(metadata.partitions):
            at = TopicPartition(topic, partition)
            first, last = consumer.get_watermark_offsets(at, timeout=READ_TIMEOUT_SECONDS)
            if since_ms is not None:
                first = max(first, _offset_at(consumer, topic, partition, since_ms, last))
            if until_ms is not None:
                last = min(last, _offset_at(consumer, topic, partition, until_ms, last))
            ranges.append(OffsetRange(topic, partition, first, max(first, last)))
    except KafkaException as e:
        msg = f"asking Kafka for the offsets of {topic!r}: {e}; is it up?"
        raise RetryableError(msg) from e
    else:
        return ranges
    finally:
        consumer.close()


def _offset_at(consumer: Consumer, topic: str, partition: int, time_ms: int, end: int) -> int:
    wanted = TopicPartition(topic, partition, time_ms)
    found = consumer.offsets_for_times([wanted], timeout=READ_TIMEOUT_SECONDS)[0].offset
    return end if found in (OFFSET_END, -1) else int(found)


def read_range(
    settings: KafkaSettings,
    ranges: Sequence[OffsetRange],
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Message]:
    """Yield every record of the ranges, each partition in order.

    Offsets that hold no record (transaction markers, compacted or expired records) are passed over.

    Raises:
        RetryableError: Kafka did not answer for half a minute.
    """
    waiting = {(r.topic, r.partition): r for r in ranges if r.last > r.first}
    if not waiting:
        return
    consumer = _consumer(settings)
    try:
        consumer.assign([TopicPartition(r.topic, r.partition, r.first) for r in waiting.values()])
        heard = time.monotonic()
        while waiting:
            messages = consumer.consume(BATCH_MESSAGES, timeout=0.2)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > READ_TIMEOUT_SECONDS:
                msg = f"reading {sorted(waiting)}: nothing came for {READ_TIMEOUT_SECONDS:.0f} s"
                raise RetryableError(msg)
            for message in messages:
                place = (str(message.topic()), int(message.partition()))  # type: ignore[arg-type]
                error = message.error()
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                        msg = f"reading {place} of Kafka: {error.str()}"
                        raise RetryableError(msg)
                    waiting.pop(place, None)
                    continue
                wanted = waiting.get(place)
                if wanted is None:
                    continue
                offset = int(message.offset())  # type: ignore[arg-type]
                if offset < wanted.last:
                    yield message
                if offset >= wanted.last - 1:
                    waiting.pop(place, None)
            progress(len(messages))
    finally:
        consumer.close()


def stored_offsets(
    client: ClickHouseClient, view: str, ranges: Sequence[OffsetRange], condition: str = "1"
) -> dict[tuple[str, int], NDArray[np.int64]]:
    """Return the offsets that a view holds within the ranges, one entry per row of the view."""
    found: dict[tuple[str, int], NDArray[np.int64]] = {}
    for r in ranges:
        parameters: dict[str, Any] = {
            "topic": r.topic,
            "partition": r.partition,
            "first": r.first,
            "last": r.last,
        }
        query = (
            f"SELECT kafka_offset FROM {view} "  # noqa: S608 - our own names
            "WHERE kafka_topic = {topic:String} AND kafka_partition = {partition:Int32} "
            "AND kafka_offset >= {first:Int64} AND kafka_offset < {last:Int64} "
            f"AND ({condition})"
        )
        found[r.topic, r.partition] = client.table(query, "<i8", parameters).astype(np.int64)
    return found


def ends_of(client: ClickHouseClient, view: str) -> list[tuple[str, int, int]]:
    """Return the last place of each partition that a view knows of, as (topic, partition, offset).

    Whether Kafka ever held so much, its own end says.
    """
    rows = client.rows(
        "SELECT kafka_topic, kafka_partition, max(kafka_offset) AS last "  # noqa: S608 - our own names
        f"FROM {view} GROUP BY kafka_topic, kafka_partition"
    )
    return [(row["kafka_topic"], row["kafka_partition"], row["last"]) for row in rows]


def texts_where(
    client: ClickHouseClient,
    view: str,
    ranges: Sequence[OffsetRange],
    condition: str,
    expression: str,
) -> list[tuple[tuple[str, int, int], str]]:
    """Return ((topic, partition, offset), text) of each row of a view within the ranges."""
    found = []
    for r in ranges:
        rows = client.rows(
            f"SELECT kafka_offset, {expression} AS text FROM {view} "  # noqa: S608 - our own names
            "WHERE kafka_topic = {topic:String} AND kafka_partition = {partition:Int32} "
            "AND kafka_offset >= {first:Int64} AND kafka_offset < {last:Int64} "
            f"AND ({condition})",
            {"topic": r.topic, "partition": r.partition, "first": r.first, "last": r.last},
        )
        found += [((r.topic, r.partition, row["kafka_offset"]), row["text"]) for row in rows]
    return found


def stored_texts(
    client: ClickHouseClient, view: str, places: Sequence[tuple[str, int, int]], expression: str
) -> dict[tuple[str, int, int], str]:
    """Return a text expression over the rows of a view at (topic, partition, offset).

    A place without a row is absent.
    """
    found: dict[tuple[str, int, int], str] = {}
    for low in range(0, len(places), PLACES_AT_ONCE):
        some = places[low : low + PLACES_AT_ONCE]
        parameters = {
            "topics": _array(f"'{topic}'" for topic in dict.fromkeys(at[0] for at in some)),
            "offsets": _array(str(at[2]) for at in some),
        }
        rows = client.rows(
            f"SELECT kafka_topic, kafka_partition, kafka_offset, {expression} AS text "  # noqa: S608 - our own names
            f"FROM {view} WHERE kafka_topic IN {{topics:Array(String)}} "
            "AND kafka_offset IN {offsets:Array(Int64)}",
            parameters,
        )
        for row in rows:
            found[row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]] = row["text"]
    return {place: found[place] for place in places if place in found}


def _array(items: Iterable[str]) -> str:
    return f"[{','.join(items)}]"
