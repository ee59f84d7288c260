"""A real stack under steady load that faults are tried on: start, load, wait, account, compare."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from connectors.clickhouse import ClickHouseClient
from connectors.evidence import ranges_of, read_range
from connectors.flink import FlinkCluster, FlinkError
from connectors.frames import event_time_header, write_frame
from connectors.kafka import librdkafka_config
from connectors.local.stack import LocalStack, resolved_settings
from connectors.producers.labels import DAY_MS, LabelPolicy
from connectors.producers.pace import Pace, SystemClock
from connectors.producers.publisher import KafkaPublisher
from connectors.producers.replay import replay
from connectors.producers.routes import label_route, transaction_route
from connectors.producers.simulator import Population, Simulation
from connectors.producers.source import TransactionBatch
from connectors.profile_loading import load_profiles
from connectors.profiles import redis_client
from connectors.settings import Settings, load_settings
from jobs.audit import Audit
from jobs.fraud.accounts import audit_fraud
from jobs.fraud.features import FRAUD_FEATURES
from jobs.submission import submit_job
from schemas.errors import RetryableError, RiskstreamError
from tests.support.fraud import Fraud, offline_settings

__all__ = ["Load", "Recovery", "Stand", "StandError", "stack_settings"]

POLL_SECONDS: Final = 0.25
CLEAN_SECONDS: Final = 240.0
# Event time must not run away: partitions are aligned to half a day and labels come a day before
# they count, so a catch-up at 20,000/s must take seconds for a day (30,000 payments), not 75 ms.
CUSTOMERS: Final = 15_000
SLICE: Final = 100


class StandError(AssertionError):
    """The job did not recover by itself."""


def stack_settings(home: Path, *overrides: str) -> Settings:
    """Return settings of a small stack with high availability and short timeouts."""
    return load_settings(
        environment={},
        overrides=[
            f"home={home}",
            f"models.registry=file:{home}/models",
            "kafka.topics.partitions=2",
            "flink.checkpoint_interval_ms=2000",
            "flink.checkpoint_timeout_ms=30000",
            "clickhouse.gather_ms=250",
            "clickhouse.timeout_ms=5000",
            "local.high_availability=true",
            "local.task_manager_memory_mb=1024",
            "local.job_manager_memory_mb=640",
            "local.kafka_memory_mb=384",
            "local.start_timeout_seconds=300",
            *overrides,
        ],
    )


class Load:
    """Simulated payments and their labels at a steady rate, until stopped."""

    def __init__(self, settings: Settings, rate: float, seed: int = 7) -> None:
        self._settings = settings
        self._rate = rate
        self._simulation = Simulation(Population(seed=seed, customers=CUSTOMERS, terminals=300))
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.sent = 0

    @property
    def total(self) -> int | None:
        """There is no end."""
        return None

    def batches(self) -> Iterator[TransactionBatch]:
        """Give the simulation in small slices, so that it stops soon when told to."""
        for batch in self._simulation.batches():
            for low in range(0, len(batch), SLICE):
                if self._ended.is_set():
                    return
                yield batch.rows(low, min(low + SLICE, len(batch)))

    def start(self) -> None:
        """Load profiles and begin."""
        client = redis_client(self._settings.redis)
        for profiles in self._simulation.profiles():
            load_profiles(client, profiles)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait until Kafka has confirmed everything.

        Raises:
            StandError: Kafka refused a record: the load itself was not steady.
        """
        self._ended.set()
        if self._thread.ident is None:
            return
        self._thread.join(timeout=180)
        if self._thread.is_alive() or self._failure is not None:
            msg = f"the load did not end well: {self._failure!r}"
            raise StandError(msg)

    def _run(self) -> None:
        try:
            replay(
                self,
                KafkaPublisher(librdkafka_config(self._settings.kafka)),
                Pace(events_per_second=self._rate),
                LabelPolicy("all", 6 * DAY_MS),
                SystemClock(),
                self._count,
                transactions=transaction_route(self._settings),
                label_route=label_route(self._settings),
            )
        except BaseException as e:
            self._failure = e

    def _count(self, count: int) -> None:
        self.sent += count


@dataclass(frozen=True, slots=True)
class Recovery:
    """How one fault passed; seconds count from the moment of the fault.

    `resumed_seconds`: until every payment published in the first second after it was decided.
    `normal_seconds`: until payments are again decided within a second of being published.
    """

    events_in_flight: int
    resumed_seconds: float
    normal_seconds: float


class Stand:
    """One job on the stack of `base`, with topics and a database of its own."""

    def __init__(self, base: Settings, name: str, rate: float, **flink: object) -> None:
        resolved = resolved_settings(base)
        tree = resolved.model_dump()
        tree["kafka"]["topics"]["prefix"] = f"{name}-"
        tree["clickhouse"]["database"] = f"riskstream_{name.replace('-', '_')}"
        tree["flink"] |= flink
        self.settings = Settings.model_validate(tree)
        self.stack = LocalStack(base)
        self.cluster = FlinkCluster(self.settings.flink.rest_url or "")
        self.clickhouse = ClickHouseClient(self.settings.clickhouse)
        self.load = Load(self.settings, rate)
        self.job_id = ""

    def start(self) -> None:
        """Submit the job, begin the load, and wait until payments come out."""
        try:
            self.job_id = submit_job("fraud", self.settings)
        except FlinkError:
            # On a busy machine tasks may take minutes to compile their kernels for the first time.
            self.job_id = self.cluster.jobs()[0].job_id
            self.cluster.wait_running(self.job_id, 480)
        self.load.start()
        self.wait("payments come out", lambda: self.one("SELECT count() AS n FROM {v}") > 500)

    def stop(self) -> None:
        """Stop the load and cancel the job."""
        with contextlib.suppress(RiskstreamError, StandError):
            self.load.stop()
        with contextlib.suppress(RiskstreamError):
            self.cluster.cancel(self.job_id)

    def one(self, query: str) -> int:
        """Return the number `n` of a query over the view `{v}`; -1 while ClickHouse is away."""
        try:
            rows = self.clickhouse.rows(query.format(v="scored_transactions"))
        except RiskstreamError:
            return -1
        return int(rows[0]["n"])

    def wait(self, what: str, done: Callable[[], bool], seconds: float = 240.0) -> None:
        """Wait until `done`.

        Raises:
            StandError: with the job's own causes, when it takes too long.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                causes: list[str] = []
                with contextlib.suppress(RiskstreamError):
                    causes = self.cluster.exceptions(self.job_id)
                msg = f"waiting for {what} took over {seconds:.0f} s; causes: {causes[:1]}"
                raise StandError(msg)
            time.sleep(POLL_SECONDS)

    def kill(self, part: str) -> None:
        """End a part as a crash would."""
        os.kill(self.stack.pid_of(part), signal.SIGKILL)

    def freeze(self, part: str, seconds: float) -> None:
        """Stop a part's process in its tracks for a while."""
        pid = self.stack.pid_of(part)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            # The supervisor may have replaced it meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def suffer(self, fault: Callable[[], None]) -> Recovery:
        """Let a fault happen under load; return when payments are decided within a second again."""
        decided = self.one("SELECT count() AS n FROM {v}")
        in_flight = self.load.sent - decided
        began_ms = time.time_ns() // 1_000_000
        fault()
        ended_ms = time.time_ns() // 1_000_000

        def normal() -> bool:
            # Payments of two whole seconds after the fault, all there and none of them late.
            return bool(self._calm_since(ended_ms))

        self.wait("recovery", normal)
        return Recovery(in_flight, *self._times(began_ms))

    def _calm_since(self, ended_ms: int) -> bool:
        now_ms = time.time_ns() // 1_000_000
        if now_ms - ended_ms < 5_000:
            return False
        late = self.one(
            "SELECT countIf(decided_at_ms - published_at_ms > 1500) AS n FROM {v} "
            f"WHERE published_at_ms BETWEEN {now_ms - 5_000} AND {now_ms - 2_000}"
        )
        there = self.one(
            "SELECT count() AS n FROM {v} "
            f"WHERE published_at_ms BETWEEN {now_ms - 5_000} AND {now_ms - 2_000}"
        )
        return late == 0 and there > 0

    def _times(self, began_ms: int) -> tuple[float, float]:
        # A payment is there for its readers when it is decided and its row inserted.
        there = "greatest(decided_at_ms, toUnixTimestamp64Milli(inserted_at) - 1500)"
        resumed = self.one(
            f"SELECT max({there}) AS n FROM {{v}} "
            f"WHERE published_at_ms BETWEEN {began_ms} AND {began_ms + 1_000}"
        )
        normal = self.one(
            f"SELECT max({there}) AS n FROM {{v}} "
            f"WHERE published_at_ms >= {began_ms} AND {there} - published_at_ms > 1000"
        )
        return (
            round(max(0, resumed - began_ms) / 1000, 3),
            round(max(0, normal - began_ms) / 1000, 3),
        )

    def audit(self) -> Audit:
        """Account for every offset so far; ask again while events are on their way.

        The load may go on: what was published up to now is accounted for.
        """
        until_ms = time.time_ns() // 1_000_000
        deadline = time.monotonic() + CLEAN_SECONDS
        while True:
            try:
                audit = audit_fraud(self.settings, until_ms=until_ms)
            except RetryableError:
                audit = None
            if audit is not None and (audit.clean or time.monotonic() > deadline):
                return audit
            if time.monotonic() > deadline:
                msg = "Kafka or ClickHouse did not come back"
                raise StandError(msg)
            time.sleep(1.0)

    def different_features(self) -> int:
        """Return how many rows differ from an undisturbed run, in one process, of the same records.

        Features and scores are compared bit by bit, whatever came of profiles and decisions.
        """
        undisturbed = Fraud(offline_settings(self.settings.home), self.settings.flink.shards)
        frames = self._frames()
        for low in range(0, len(frames), 1_000):
            undisturbed.send(frames[low : low + 1_000])
        columns = ", ".join(f"reinterpretAsUInt64(`{n}`) AS `{n}`" for n in FRAUD_FEATURES.names)
        prefix = self.settings.kafka.topics.prefix
        stored = {
            (
                row["kafka_topic"].removeprefix(prefix),
                row["kafka_partition"],
                row["kafka_offset"],
            ): row
            for row in self.clickhouse.rows(
                "SELECT kafka_topic, kafka_partition, kafka_offset, "
                f"{columns} FROM scored_transactions"
            )
        }
        expected = undisturbed.by_place()
        return sum(
            place not in stored
            or any(_bits(row[n]) != stored[place][n] for n in FRAUD_FEATURES.names)
            for place, row in expected.items()
        ) + len(stored.keys() - expected.keys())

    def _frames(self) -> list[bytes]:
        found: list[tuple[int, str, int, int, bytes]] = []
        topics = self.settings.kafka.topics
        for field in ("transactions", "labels"):
            topic = topics.name(field)
            for message in read_range(self.settings.kafka, ranges_of(self.settings.kafka, topic)):
                record: Any = message
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
                found.append((published, name, record.partition(), record.offset(), data))
        return [entry[-1] for entry in sorted(found)]


def _bits(hexadecimal: str) -> int:
    return int.from_bytes(bytes.fromhex(hexadecimal), "little")
