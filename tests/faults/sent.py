"""What the load has sent, read from Kafka in the order in which it was published."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from connectors.evidence import ranges_of, read_range
from connectors.frames import event_time_header, write_frame
from connectors.settings import KafkaSettings
from tests.faults.variants import CRASHING_CUSTOMER, RAISING_CUSTOMER

__all__ = ["sent_in_stretches"]


def sent_in_stretches(kafka: KafkaSettings) -> Iterator[list[bytes]]:
    """Yield the frames that were sent in the order of publication, some hours at a time.

    A send passes the customers of one shard and then those of the next: the terminals of a longer
    stretch would see the second half later than the windows allow.
    """
    stretch: list[bytes] = []
    began = 0
    for stamp, frame in _frames(kafka):
        if stretch and (len(stretch) == 1_000 or stamp - began > 6 * 3_600_000):
            yield stretch
            stretch = []
        if not stretch:
            began = stamp
        stretch.append(frame)
    yield stretch


def _frames(kafka: KafkaSettings) -> list[tuple[int, bytes]]:
    found: list[tuple[int, str, int, int, int, bytes]] = []
    topics = kafka.topics
    for field in ("transactions", "labels"):
        topic = topics.name(field)
        for message in read_range(kafka, ranges_of(kafka, topic)):
            record: Any = message
            if record.key() in (CRASHING_CUSTOMER, RAISING_CUSTOMER):
                # Dead letters by design; nobody else pays at their terminal.
                continue
            name = topic.removeprefix(topics.prefix)
            headers = dict(record.headers() or [])
            stamp = int.from_bytes(headers["event_time_ms"], "little")
            published = record.timestamp()[1]
            data = write_frame(
                name,
                record.key(),
                record.value(),
                headers=(event_time_header(stamp),),
                partition=record.partition(),
                offset=record.offset(),
                timestamp_ms=published,
                ingested_at_ms=published,
            )
            place = (record.partition(), record.offset())
            found.append((published, name, *place, stamp, data))
    return [entry[-2:] for entry in sorted(found)]
