"""The operators' panels that ClickHouse cannot answer: lag and dead letters, from Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from connectors.clickhouse import ClickHouseClient
from connectors.kafka import committed, end_offsets
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

_TOPICS: Final[dict[str, dict[str, str | None]]] = {
    "fraud": {"transactions": SCORED_TABLE, "labels": "labels_raw"},
    "market-risk": {"ticks": None, "quotes": None, "fills": "risk_fills_raw"},
}
"""Topics of each job, and the table whose rows carry their offsets."""


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
    """Lag of both jobs by topic and partition; topics that do not exist yet have no rows."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self._client = ClickHouseClient(settings.clickhouse)

    def read(self) -> dict[str, Any]:
        started = time.monotonic()
        rows: list[dict[str, Any]] = []
        for job, topics in _TOPICS.items():
            for field, table in topics.items():
                rows += self._of(job, self._kafka.topics.name(field), table)
        behind = sum(row["lag"] for row in rows if row["stored"] is not None)
        return _answer(rows, started, f"{behind:,} records are on their way" if behind else "")

    def _of(self, job: str, topic: str, table: str | None) -> list[dict[str, Any]]:
        ends = end_offsets(self._kafka, topic)
        if not ends:
            return []
        read = committed(self._kafka, f"riskstream-{job}", topic)
        stored = self._stored(topic, table) if table else {}
        rows = []
        for partition, end in ends.items():
            # A row in ClickHouse is the end of a record's way; the job commits at checkpoints only.
            done = max(stored.get(partition, -1) + 1, read.get(partition, 0))
            rows.append(
                {
                    "topic": topic,
                    "partition": partition,
                    "end": end,
                    "committed": read.get(partition),
                    "stored": stored.get(partition),
                    "lag": max(0, end - done),
                }
            )
        return rows

    def _stored(self, topic: str, table: str) -> dict[int, int]:
        return {
            int(row["p"]): int(row["o"])
            for row in self._client.rows(
                "SELECT kafka_partition AS p, max(kafka_offset) AS o "  # noqa: S608 - our own names
                f"FROM {table} WHERE kafka_topic = {{topic:String}} GROUP BY p",
                {"topic": topic},
            )
        }


class _Letters:
    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        topics = settings.kafka.topics
        self._topics = [topics.name(field) for field in ("dead_letters", "market_dead_letters")]
        self._decoder = RecordDecoder(open_registry(settings.schemas))
        self._readers: dict[str, TopicReader] = {}
        self._newest: deque[dict[str, Any]] = deque(maxlen=_LETTERS)
        self._seen = 0

    def read(self) -> dict[str, Any]:
        started = time.monotonic()
        for topic in self._topics:
            if topic not in self._readers:
                # Until its job has run there is no topic, so nothing was refused.
                with contextlib.suppress(TopicUnknown):
                    self._readers[topic] = TopicReader(self._kafka, topic)
                    self._readers[topic].start(from_beginning=True)
        for topic, reader in self._readers.items():
            self._take(topic, reader, time.monotonic() + _CATCH_UP_SECONDS)
        behind = max(0, sum(one.held for one in self._readers.values()) - self._seen)
        newest = sorted(self._newest, key=lambda row: -int(row.get("when") or 0))
        return _answer(
            newest, started, f"{behind:,} letters are still to be read" if behind else ""
        )

    def _take(self, topic: str, reader: TopicReader, until: float) -> None:
        while time.monotonic() < until:
            record = reader.poll(0.1)
            if record is None:
                return
            self._seen += 1
            letter = f"{topic}/{record.partition}:{record.offset}"
            self._newest.appendleft(self._described(record.value, letter))

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
