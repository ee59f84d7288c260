"""An open-loop load and a consumer that does not wait: what latency figures rest on.

Every record has a due time, `i / rate` after the start, and carries it as its Kafka timestamp, also
when the generator is late. A contestant that falls behind is therefore charged for the records that
waited (no coordinated omission). The consumer polls one record at a time, because a client that
collects records before it returns adds its own wait. The generator runs in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from confluent_kafka import Consumer

from benchmarks.workload import Record
from connectors.producers.publisher import bulk_publisher
from schemas.columns import StringColumn

__all__ = ["AlertTimes", "Arrival", "LoadResult", "percentiles", "send_at_rate", "send_flat_out"]

# Due times within a slice this long are sent together: short against any latency that is measured.
SLICE_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What the generator did; `latest_ms` is how late it was at worst."""

    sent: int
    seconds: float
    latest_ms: float
    cpu_seconds: float


def send_at_rate(
    configuration: dict[str, object], topic: str, records: Sequence[Record], rate: float
) -> LoadResult:
    """Send records at a smooth rate from a process of its own; return when all are confirmed."""
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(configuration, topic, records, rate, writing))
    process.start()
    writing.close()
    try:
        result = reading.recv()
    except EOFError as e:
        msg = f"sending {len(records)} records at {rate:g}/s: the generator died"
        raise RuntimeError(msg) from e
    finally:
        process.join()
    if not isinstance(result, LoadResult):
        msg = f"sending records: {result}"
        raise TypeError(msg)
    return result


def send_flat_out(
    configuration: dict[str, object], topic: str, records: Sequence[Record]
) -> LoadResult:
    """Send records as fast as the broker takes them: a backlog to drain."""
    return send_at_rate(configuration, topic, records, float("inf"))


def _send(
    configuration: dict[str, object],
    topic: str,
    records: Sequence[Record],
    rate: float,
    result: multiprocessing.connection.Connection,
) -> None:
    # What a record waits for company (`LINGER_MS`) is charged to the contestant: it was due before.
    publisher = bulk_publisher(configuration)
    keys = StringColumn.from_bytes([record.key for record in records])
    values = StringColumn.from_bytes([record.value for record in records])
    event_time_ms = np.array([record.event_time_ms for record in records], np.int64)
    cpu, began, began_ms = time.process_time(), time.monotonic(), time.time() * 1000
    due_ms = None
    if rate != float("inf"):
        due_ms = (began_ms + 1000 / rate * np.arange(len(records))).astype(np.int64)
    latest, at = 0.0, 0
    while at < len(records):
        elapsed = time.monotonic() - began
        due = len(records) if rate == float("inf") else min(len(records), int(elapsed * rate) + 1)
        if due > at:
            latest = max(latest, elapsed - at / rate)
            publisher.publish(
                topic,
                keys.take(slice(at, due)),
                values.take(slice(at, due)),
                event_time_ms[at:due],
                None if due_ms is None else due_ms[at:due],
            )
            at = due
        # Also after a slice: at 60,000/s some records are due by the time others are sent, and a
        # loop that sends them at once takes a whole core for slices of three.
        if at < len(records):
            time.sleep(SLICE_SECONDS)
    publisher.flush()
    result.send(
        LoadResult(
            len(records),
            round(time.monotonic() - began, 3),
            round(latest * 1000, 2),
            round(time.process_time() - cpu, 3),
        )
    )
    result.close()


class Arrival(NamedTuple):
    """One record as it was received; times in ms since the epoch, `stamped_ms` is Kafka's."""

    arrived_ms: int
    stamped_ms: int
    value: bytes


class AlertTimes(threading.Thread):
    """Notes when each record of a topic arrives, by the wall clock; decodes nothing meanwhile."""

    def __init__(self, configuration: dict[str, object], topic: str) -> None:
        super().__init__(name="alert-times", daemon=True)
        self._configuration = configuration
        self._topic = topic
        self._ended = threading.Event()
        self.ready = threading.Event()
        self.arrivals: list[Arrival] = []

    def run(self) -> None:
        """Poll until `stop`."""
        consumer = Consumer(
            {
                **self._configuration,
                "group.id": f"bench-{time.time_ns()}",
                "auto.offset.reset": "latest",
                "enable.auto.commit": False,
                # A fetch returns with the first record; only empty ones are held back this long.
                "fetch.wait.max.ms": 100,
            }
        )
        consumer.subscribe([self._topic], on_assign=lambda *_: self.ready.set())
        try:
            while not self._ended.is_set():
                message = consumer.poll(0.05)
                if message is not None and message.error() is None:
                    arrived_ms = time.time_ns() // 1_000_000
                    stamped_ms = message.timestamp()[1]
                    self.arrivals.append(Arrival(arrived_ms, stamped_ms, message.value() or b""))
        finally:
            consumer.close()

    def settle(self, count: int, seconds: float = 5.0) -> None:
        """Wait until `count` records are there, or none came for some seconds."""
        seen, changed = -1, time.monotonic()
        while (now := len(self.arrivals)) < count and time.monotonic() - changed < seconds:
            if now != seen:
                seen, changed = now, time.monotonic()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop polling and wait for the thread."""
        self._ended.set()
        self.join(timeout=10)


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p99, p99.9, the largest and how many; empty input gives a count of 0 only."""
    if not len(milliseconds):
        return {"count": 0}
    p50, p99, p999, largest = np.quantile(milliseconds, [0.5, 0.99, 0.999, 1.0])
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "p99_9_ms": round(float(p999), 2),
        "max_ms": round(float(largest), 2),
        "count": len(milliseconds),
    }
