"""The operators' panels that ClickHouse cannot answer: lag and dead letters, from Kafka."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from connectors.clickhouse import ClickHouseClient
from connectors.kafka import end_offsets
from connectors.readers import TopicReader, TopicUnknown
from connectors.settings import Settings
from connectors.tables import SCORED_TABLE
from schemas.avro import RecordDecoder
from schemas.reasons import AvroRecordError
from schemas.registry import open_registry

__all__ = ["kafka_panels"]

# Asked of Kafka once in so long, however many look.
_KEPT_SECONDS: Final = 3.0
_LETTERS: Final = 50
# Old letters are caught up with in steps, so that the first page does not wait for all of them.
_CATCH_UP_SECONDS: Final = 1.0


def kafka_panels(settings: Settings) -> dict[str, Callable[[], Awaitable[dict[str, Any]]]]:
    """Return the panels by name; none where no Kafka is configured.

    Each keeps its answer for three seconds. Keys and contents of dead letters are not shown: they
    are personal data.
    """
    if settings.kafka.bootstrap_servers is None:
        return {}
    return {
        "kafka_lag": _Shared(_Lag(settings).read).answer,
        "kafka_dead_letters": _Shared(_Letters(settings).read).answer,
    }


class _Shared:
    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        self._read = read
        self._lock: asyncio.Lock | None = None
        self._asked = -_KEPT_SECONDS
        self._answer: dict[str, Any] = {}

    async def answer(self) -> dict[str, Any]:
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if time.monotonic() - self._asked >= _KEPT_SECONDS:
                self._answer = await asyncio.to_thread(self._read)
                self._asked = time.monotonic()
            return self._answer


class _Lag:
    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self._topic = settings.kafka.topics.name("transactions")
        self._client = ClickHouseClient(settings.clickhouse)

    def read(self) -> dict[str, Any]:
        started = time.monotonic()
        stored = {
            int(row["p"]): int(row["o"])
            for row in self._client.rows(
                "SELECT kafka_partition AS p, max(kafka_offset) AS o "  # noqa: S608 - our own names
                f"FROM {SCORED_TABLE} WHERE kafka_topic = {{topic:String}} GROUP BY p",
                {"topic": self._topic},
            )
        }
        rows = [
            {
                "topic": self._topic,
                "partition": partition,
                "end": end,
                "stored": stored.get(partition),
                "lag": max(0, end - 1 - stored.get(partition, -1)),
            }
            for partition, end in end_offsets(self._kafka, self._topic).items()
        ]
        behind = sum(int(row["lag"] or 0) for row in rows)
        return _answer(rows, started, f"{behind:,} records are on their way" if behind else "")


class _Letters:
    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self._topic = settings.kafka.topics.name("dead_letters")
        self._decoder = RecordDecoder(open_registry(settings.schemas))
        self._reader: TopicReader | None = None
        self._newest: deque[dict[str, Any]] = deque(maxlen=_LETTERS)
        self._seen = 0

    def read(self) -> dict[str, Any]:
        started = time.monotonic()
        if self._reader is None:
            try:
                self._reader = TopicReader(self._kafka, self._topic)
            except TopicUnknown:
                # No job has run yet, so nothing was refused.
                return _answer([], started, "")
            self._reader.start(from_beginning=True)
        while time.monotonic() - started < _CATCH_UP_SECONDS:
            record = self._reader.poll(0.1)
            if record is None:
                break
            self._seen += 1
            self._newest.appendleft(
                self._described(record.value, f"{record.partition}:{record.offset}")
            )
        behind = max(0, self._reader.held - self._seen)
        return _answer(
            list(self._newest),
            started,
            f"{behind:,} letters are still to be read" if behind else "",
        )

    def _described(self, value: bytes | None, letter: str) -> dict[str, Any]:
        try:
            fields: Mapping[str, Any] = self._decoder.decode(value)
        except AvroRecordError as e:
            return {"letter": letter, "reason": f"unreadable letter: {e}"}
        return {
            "when": fields["failed_at_ms"],
            "letter": letter,
            "record": f"{fields['topic']}/{fields['partition']}:{fields['offset']}",
            "reason": fields["reason"],
            "stage": fields["stage"],
            "attempt": fields["attempt"],
        }


def _answer(rows: list[dict[str, Any]], started: float, why: str) -> dict[str, Any]:
    """Say what Kafka holds now: its age is the moment it was asked."""
    return {
        "rows": rows,
        "newest_ms": round(time.time() * 1000),
        "age_ms": 0,
        "provisional": bool(why),
        "why": why,
        "took_ms": round((time.monotonic() - started) * 1000, 1),
    }
