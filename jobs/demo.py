"""Run the fraud job end to end on the local stack and measure it: what `riskstream demo` does.

Traffic comes in two parts. First as fast as the job takes it, which gives the throughput; then,
with nothing waiting and ClickHouse done with merging what came, at a steady open-loop rate, which
gives the latency. Both are counted in the same ClickHouse view and alert topic that users read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer
from numpy.typing import NDArray

from connectors.clickhouse import ClickHouseClient
from connectors.flink import FlinkCluster
from connectors.kafka import end_offsets, librdkafka_config
from connectors.producers.labels import DAY_MS, LabelPolicy
from connectors.producers.pace import SystemClock
from connectors.producers.publisher import bulk_publisher
from connectors.producers.replay import ReplaySummary, replay
from connectors.producers.routes import label_route, transaction_route
from connectors.producers.simulator import Population, Simulation
from connectors.producers.source import FileSource, TransactionBatch, TransactionSource
from connectors.profile_loading import Profiles, derive_profiles, load_profiles
from connectors.profiles import redis_client
from connectors.settings import Settings
from jobs.submission import submit_job
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.errors import FatalError
from schemas.registry import open_registry

__all__ = ["AlertWatch", "CutAt", "DemoError", "DemoResult", "StagedPace", "Traffic", "run_demo"]

# Nothing new for this long, with events missing: the job is stuck, not slow.
STALL_SECONDS: Final = 90
POLL_SECONDS: Final = 0.25
# From the burst's last row to the first steady payment: merges take a core for about as long.
SETTLE_SECONDS: Final = 3.0
# Features take a label after 7 days. A flat-out replay runs several days a second, so the rest of
# the 7 days is how long a label may be under way and still come before the events that need it.
LABEL_DELAY_MS: Final = 3 * DAY_MS
STEADY_RATE: Final = 2_000.0
STEADY_EVENTS: Final = 20_000


class DemoError(FatalError):
    """The demo did not see every event come out."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to send: a file or simulated payments, how many, and at which steady rate.

    `rate` None sends all but the last tenth (20,000 events at most) flat out, the rest at 2,000/s.
    """

    dataset: Path | None
    limit: int
    rate: float | None
    seed: int = 1

    def source(self) -> TransactionSource:
        """Open the source from its start."""
        if self.dataset is not None:
            return FileSource(self.dataset, limit=self.limit)
        return Simulation(Population(seed=self.seed), limit=self.limit)

    def profiles(self) -> list[Profiles]:
        """Return everyone's profiles, without anything that the labels would tell."""
        if self.dataset is None:
            return Simulation(Population(seed=self.seed)).profiles()
        return derive_profiles(_Unlabelled(self.source()))


@dataclass(frozen=True, slots=True)
class _Unlabelled:
    source: TransactionSource

    @property
    def total(self) -> int | None:
        return self.source.total

    def batches(self) -> Iterator[TransactionBatch]:
        for batch in self.source.batches():
            yield replace(batch, is_fraud=None)


@dataclass(frozen=True, slots=True)
class CutAt:
    """A source whose batches end after so many transactions, where the pace changes."""

    source: TransactionSource
    at: int

    @property
    def total(self) -> int | None:
        """Transactions that will come, where the source knows."""
        return self.source.total

    def batches(self) -> Iterator[TransactionBatch]:
        """Yield the source's batches, the one over the cut in two."""
        done = 0
        for batch in self.source.batches():
            cut = min(max(self.at - done, 0), len(batch))
            for part in (batch.rows(0, cut), batch.rows(cut, len(batch))):
                if len(part):
                    yield part
            done += len(batch)


@dataclass(slots=True)
class DemoResult:
    """What came out; times in seconds and milliseconds of the wall clock."""

    events_in: int
    scored_rows: int
    distinct_event_ids: int
    alerts: int
    dead_letters: int
    seconds: float
    events_per_second: float
    latency_ms: dict[str, float | None]
    first_alert_seconds: float | None
    throughput: dict[str, float]
    decision_latency_ms: dict[str, float | None]
    row_latency_ms: dict[str, float | None]
    labels: int
    job_id: str
    example_alert: dict[str, Any] | None = None


class StagedPace:
    """Flat out for `burst` events; then, once `drained` returns, at a steady open-loop rate.

    `drained` is called once, with the number of events published, before the first steady event.
    """

    flat_out = False

    def __init__(self, burst: int, rate: float, drained: Callable[[int], None]) -> None:
        self._burst = burst
        self._rate = rate
        self._drained = drained
        self._began = time.monotonic()
        self._steady_at: tuple[int, float] | None = None
        self.steady_from_ms: int | None = None

    def due_seconds(
        self, done: int, event_time_ms: NDArray[np.int64], first_event_time_ms: int
    ) -> NDArray[np.float64]:
        """Return due times; the switch falls on the batch in which the burst would end."""
        n = len(event_time_ms)
        if self._steady_at is None and done + n <= self._burst:
            return np.zeros(n)
        if self._steady_at is None:
            if done:
                self._drained(done)
            self._steady_at = done, time.monotonic() - self._began
            self.steady_from_ms = time.time_ns() // 1_000_000
        first, started = self._steady_at
        return started + np.arange(done - first, done - first + n) / self._rate


class AlertWatch(threading.Thread):
    """Subscribe to the alert topic as a fraud team would and note when each alert arrives.

    Polls one record at a time: a client that collects records before it returns would add its own
    wait to the latency.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="alert-watch", daemon=True)
        self._settings = settings
        self._decoder = RecordDecoder(open_registry(settings.schemas), contract("alert"))
        self._ended = threading.Event()
        self.ready = threading.Event()
        self.ids: set[str] = set()
        self.published_ms: list[int] = []
        self.arrived_ms: list[int] = []
        self.first_at: float | None = None
        self.last: dict[str, Any] | None = None

    def run(self) -> None:
        """Poll until `stop`."""
        consumer = Consumer(
            {
                **librdkafka_config(self._settings.kafka),
                "group.id": f"riskstream-demo-{time.time_ns()}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe(
            [self._settings.kafka.topics.name("alerts")],
            on_assign=lambda *_: self.ready.set(),
        )
        try:
            while not self._ended.is_set():
                message = consumer.poll(0.05)
                if message is None or message.error() is not None:
                    continue
                now_ms = time.time_ns() // 1_000_000
                alert = self._decoder.decode(message.value())
                if alert["alert_id"] in self.ids:
                    continue
                self.ids.add(alert["alert_id"])
                self.published_ms.append(alert["published_at_ms"])
                self.arrived_ms.append(now_ms)
                if self.first_at is None:
                    self.first_at = time.monotonic()
                if self.last is None or len(alert["reasons"]) >= len(self.last["reasons"]):
                    self.last = alert
        finally:
            consumer.close()

    def stop(self) -> None:
        """Stop polling and wait for the thread."""
        self._ended.set()
        self.join(timeout=10)


def run_demo(
    settings: Settings,
    traffic: Traffic,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> DemoResult:
    """Submit the job, send the traffic, wait until every event came out, and count.

    Args:
        settings: with the addresses of running parts.
        traffic: what to send.
        say: told what begins.
        progress: told (events out, events sent so far).

    Raises:
        DemoError: events are missing and nothing new comes out; the message says what the job says.
    """
    say("loading profiles")
    client = redis_client(settings.redis)
    for profiles in traffic.profiles():
        load_profiles(client, profiles)
    say("submitting the job")
    job_id = submit_job("fraud", settings)
    counter = _Counter(settings, job_id, progress)
    watch = AlertWatch(settings)
    watch.start()
    watch.ready.wait(timeout=30)
    publisher = bulk_publisher(librdkafka_config(settings.kafka))
    try:
        say("sending payments")
        began = time.monotonic()
        began_ms = time.time_ns() // 1_000_000
        burst = 0
        if traffic.rate is None:
            total = traffic.source().total or traffic.limit
            burst = total - min(STEADY_EVENTS, total // 10)

        def drained(sent: int) -> None:
            counter.wait_for(sent)
            time.sleep(SETTLE_SECONDS)

        pace = StagedPace(burst, traffic.rate or STEADY_RATE, drained)
        summary = replay(
            CutAt(traffic.source(), burst),
            publisher,
            pace,
            LabelPolicy("frauds", LABEL_DELAY_MS),
            SystemClock(),
            counter.sent,
            transactions=transaction_route(settings),
            label_route=label_route(settings),
        )
        counter.wait_for(summary.transactions)
        say("waiting for the last alerts")
        expected = counter.alerts_expected()
        deadline = time.monotonic() + STALL_SECONDS
        while len(watch.ids) < expected and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
    finally:
        # Closed before the stack stops: librdkafka would tell of a broker that is gone.
        publisher.close()
        watch.stop()
    return _result(settings, counter, watch, pace, summary, job_id, began, began_ms, seconds)


class _Counter:
    """Counts what came out, in ClickHouse and on the dead-letter topic."""

    def __init__(
        self, settings: Settings, job_id: str, progress: Callable[[int, int], None]
    ) -> None:
        self._settings = settings
        self._job_id = job_id
        self._progress = progress
        self._sent = 0
        self.client = ClickHouseClient(settings.clickhouse)

    def sent(self, count: int) -> None:
        self._sent += count
        self._progress(0, self._sent)

    def scored(self) -> int:
        # The raw table is counted while waiting: it costs nothing. The result counts the view.
        return self.one("SELECT count() AS n FROM scored_transactions_raw")

    def distinct(self) -> int:
        return self.one("SELECT count() AS n FROM scored_transactions")

    def dead_letters(self) -> int:
        topic = self._settings.kafka.topics.name("dead_letters")
        return sum(end_offsets(self._settings.kafka, topic).values())

    def alerts_expected(self) -> int:
        return self.one("SELECT count() AS n FROM scored_transactions WHERE decision != 'approve'")

    def one(self, query: str) -> int:
        return int(self.client.rows(query)[0]["n"])

    def wait_for(self, sent: int) -> None:
        """Wait until that many events are rows or dead letters."""
        seen, changed = -1, time.monotonic()
        while True:
            out = self.scored() + self.dead_letters()
            if out != seen:
                seen, changed = out, time.monotonic()
            self._progress(out, self._sent)
            # After a restart of the job some rows are there twice: what counts is the view.
            if out >= sent and self.distinct() + self.dead_letters() >= sent:
                return
            if time.monotonic() - changed > STALL_SECONDS:
                raise DemoError(self._stuck(sent, out))
            time.sleep(POLL_SECONDS)

    def _stuck(self, sent: int, out: int) -> str:
        message = (
            f"waiting for {sent:,} events to come out: {out:,} did, and none for {STALL_SECONDS} s"
        )
        if self._settings.flink.rest_url is None:
            return message
        cluster = FlinkCluster(self._settings.flink.rest_url)
        state = cluster.job(self._job_id)["state"]
        causes = cluster.exceptions(self._job_id)
        return f"{message}; the job is {state}" + (f": {causes[0][:3000]}" if causes else "")


def _result(
    settings: Settings,
    counter: _Counter,
    watch: AlertWatch,
    pace: StagedPace,
    summary: ReplaySummary,
    job_id: str,
    began: float,
    began_ms: int,
    seconds: float,
) -> DemoResult:
    steady_ms = pace.steady_from_ms or began_ms
    rows = counter.client.rows(
        "SELECT count() AS scored, uniqExact(event_id) AS ids FROM scored_transactions"
    )[0]
    burst = counter.client.rows(
        "SELECT count() AS n, max(decided_at_ms) AS last, min(published_at_ms) AS first "
        "FROM scored_transactions WHERE published_at_ms < {steady:Int64}",
        {"steady": steady_ms},
    )[0]
    burst_seconds = max(0.001, (int(burst["last"]) - int(burst["first"])) / 1000)
    total_rate = summary.transactions / seconds if seconds else 0.0
    rate = int(burst["n"]) / burst_seconds if int(burst["n"]) else total_rate
    arrived, published = np.array(watch.arrived_ms), np.array(watch.published_ms)
    steady = (
        arrived[published >= steady_ms] - published[published >= steady_ms]
        if len(arrived)
        else arrived
    )
    quantiles = {}
    for name, column in (("decided", "decided_at_ms"), ("inserted", None)):
        later = column or "toUnixTimestamp64Milli(inserted_at)"
        quantiles[name] = counter.client.rows(
            f"SELECT quantilesExact(0.5, 0.95, 0.99, 1)({later} - published_at_ms) AS q "  # noqa: S608
            "FROM scored_transactions WHERE published_at_ms >= {steady:Int64}",
            {"steady": steady_ms},
        )[0]["q"]
    return DemoResult(
        events_in=summary.transactions,
        scored_rows=int(rows["scored"]),
        distinct_event_ids=int(rows["ids"]),
        alerts=len(watch.ids),
        dead_letters=counter.dead_letters(),
        seconds=round(seconds, 3),
        events_per_second=round(rate, 1),
        latency_ms=_percentiles(np.quantile(steady, [0.5, 0.95, 0.99, 1.0]) if len(steady) else []),
        first_alert_seconds=None if watch.first_at is None else round(watch.first_at - began, 3),
        throughput={
            "events": int(burst["n"]),
            "seconds": round(burst_seconds, 3) if int(burst["n"]) else 0.0,
        },
        decision_latency_ms=_percentiles(quantiles["decided"]),
        row_latency_ms=_percentiles(quantiles["inserted"]),
        labels=summary.labels,
        job_id=job_id,
        example_alert=watch.last,
    )


def _percentiles(values: Any) -> dict[str, float | None]:
    found: list[float | None] = [round(float(value), 3) for value in values]
    return dict(zip(("p50", "p95", "p99", "max"), found or [None] * 4, strict=True))
