"""A real stack under steady load that faults are tried on: start, load, wait, account, compare."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import resident_bytes, tree
from connectors.clickhouse import ClickHouseClient, ClickHouseRefused
from connectors.flink import FlinkCluster, FlinkError
from connectors.local.flink_lib import assemble_lib, pyflink_folder
from connectors.local.stack import LocalStack, LocalStackError, resolved_settings
from connectors.settings import Settings, load_settings
from connectors.tables import SCORED_TABLE
from jobs.audit import Audit, Coordinate
from jobs.fraud.accounts import audit_fraud
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.resources import prepare
from jobs.submission import ROOT, submit_job
from models.manifest import REFERENCE_FILE
from models.registry import ModelFolder, Registry
from schemas.errors import RetryableError, RiskstreamError
from tests.faults.link import Link
from tests.faults.load import Load, LoadError
from tests.faults.sent import sent_in_stretches
from tests.faults.topics import publish_payment
from tests.support.fraud import Fraud, offline_settings

__all__ = ["Recovery", "Stand", "StandError", "stack_settings"]

POLL_SECONDS: Final = 0.5
CLEAN_SECONDS: Final = 240.0
UNKNOWN: Final = frozenset({60, 81})
START_SECONDS: Final = 480.0
RECOVERY_SECONDS: Final = 360.0
# Payments are normal when those of this long are all there and none was late.
CALM_MS: Final = 2_000
# Rows are stored a while after their decision; younger payments are not looked for yet.
STORED_MS: Final = 3_000
LATE_MS: Final = 1_500
NEVER_MS: Final = 999_999
# A machine that is busy with other things may never come to rest; the account is made all the same.
REST_SECONDS: Final = 45.0
# What must be the same whenever and wherever an event is decided.
ANSWER: Final = ("decision", "score", "rules_fired", *FRAUD_FEATURES.names)


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
            # More can go wrong between two tasks of each stage than where each has one.
            *("flink.parallelism=2", "flink.shards=2", "flink.stage_slots=shared"),
            "flink.checkpoint_interval_ms=2000",
            "flink.checkpoint_timeout_ms=30000",
            "clickhouse.gather_ms=1000",
            "clickhouse.timeout_ms=5000",
            "local.high_availability=true",
            "local.task_manager_memory_mb=1024",
            "local.job_manager_memory_mb=640",
            "local.kafka_memory_mb=384",
            "local.start_timeout_seconds=300",
            *overrides,
        ],
    )


@dataclass(frozen=True, slots=True)
class Recovery:
    """How one fault passed; seconds count from the moment of the fault.

    `resumed_seconds`: until payments came out again after the longest silence.
    `normal_seconds`: until the last second of payments, half of which were late, was there.
    `calm`: whether payments were in time again before the harness went on.
    `memory_megabytes`: the most that the TaskManagers held together meanwhile.
    `restarts`: which parts were started again, how often and why: more than the fault explains is a
    crash of its own.
    """

    events_in_flight: int
    resumed_seconds: float
    normal_seconds: float
    calm: bool
    memory_megabytes: int
    restarts: Mapping[str, str]


class Stand:
    """One job on the stack of `base`, with topics and a database of its own.

    Args:
        base: settings of the running stack.
        name: goes before topics and into the database's name.
        rate: payments a second.
        addresses: where the job finds other parts than the harness does, as behind a link that can
            be cut: dotted keys of the settings.
        customers: how many there are; see `tests.faults.load`.
        history: send eight days first, so that labels count.
        flink: settings of the job.
    """

    def __init__(
        self,
        base: Settings,
        name: str,
        rate: float,
        addresses: Mapping[str, str] | None = None,
        *,
        customers: int | None = None,
        history: bool = True,
        **flink: object,
    ) -> None:
        resolved = resolved_settings(base)
        tree = resolved.model_dump()
        tree["kafka"]["topics"]["prefix"] = f"{name}-"
        tree["clickhouse"]["database"] = f"riskstream_{name.replace('-', '_')}"
        tree["flink"] |= flink
        self.settings = Settings.model_validate(tree)
        for key, value in (addresses or {}).items():
            section, _, field = key.partition(".")
            tree[section][field] = value
        self.job_settings = Settings.model_validate(tree)
        self.stack = LocalStack(base)
        self.cluster = FlinkCluster(self.settings.flink.rest_url or "")
        self.clickhouse = ClickHouseClient(self.settings.clickhouse)
        # For what a run has come to: a busy machine must not end a whole series.
        self._results = ClickHouseClient(
            self.settings.clickhouse.model_copy(update={"timeout_ms": 120_000})
        )
        self.load = Load(self.settings, rate, customers, history=history)
        self.rate = rate
        self.links: dict[str, Link] = {}
        self.variant: str | None = None
        self.job_id = ""
        self._clean_until_ms: int | None = None
        self._suffered_ms = 0
        self._lateness_ms = NEVER_MS
        self._late_ms = LATE_MS
        self._models: list[str] = []

    def start(self) -> None:
        """Submit the job, begin the load, and wait until it is steady and payments are in time."""
        self.submit()
        self.load.start()
        self.wait("the history", self.load.steady.is_set)
        self.wait("payments", lambda: self._calm_since(0) or self._lateness_ms < NEVER_MS)

    def submit(self, savepoint: str | None = None) -> None:
        """Submit the job or its `variant`, or resume it, and wait until all its tasks run."""
        if self.variant is not None:
            self._submit_variant(self.variant, savepoint)
            return
        try:
            self.job_id = submit_job("fraud", self.job_settings, savepoint=savepoint)
        except FlinkError:
            # On a busy machine tasks may take minutes to compile their kernels for the first time.
            self.job_id = self.cluster.jobs()[0].job_id
            self.cluster.wait_running(self.job_id, START_SECONDS)

    def _submit_variant(self, variant: str, savepoint: str | None) -> None:
        prepare(self.job_settings)
        self.job_id = self.cluster.submit(
            variant,
            self.job_settings.with_secrets_json(),
            root=ROOT,
            flink_home=pyflink_folder(),
            lib_directory=assemble_lib(self.settings.home / "flink-lib"),
            savepoint=savepoint,
            script=ROOT / "tests" / "faults" / "variants.py",
        )
        self.cluster.wait_running(self.job_id, START_SECONDS)

    def other_model(self) -> str:
        """Return a model that is not in force: the default one and a twin of it, in turn."""
        if not self._models:
            registry = Registry(self.settings.models.registry)
            first = registry.champion()
            manifest, data = registry.load(first)
            twin = manifest.model_copy(update={"name": "twin"})
            extra = {REFERENCE_FILE: registry.file(first, REFERENCE_FILE)}
            self._models = [first, registry.register(ModelFolder(twin, data, extra))]
        self._models.reverse()
        return self._models[0]

    def stop(self) -> None:
        """Stop the load and cancel the job."""
        with contextlib.suppress(LoadError):
            self.load.stop()
        with contextlib.suppress(RiskstreamError):
            self.cluster.cancel(self.job_id)

    def one(self, query: str) -> int:
        """Return the number `n` of a query over the view `{v}`; -1 while ClickHouse is away."""
        try:
            rows = self.clickhouse.rows(query.format(v="scored_transactions"))
        except RetryableError:
            return -1
        except ClickHouseRefused as e:
            # The table is not there yet, or a fault has hidden it.
            if e.code not in UNKNOWN:
                raise
            return -1
        return int(rows[0]["n"])

    def wait(self, what: str, done: Callable[[], bool], seconds: float = 240.0) -> None:
        """Wait until `done`.

        Raises:
            StandError: with the job's own causes, when it takes too long.
            LoadError: the load has ended of itself.
        """
        deadline = time.monotonic() + seconds
        while not done():
            self.load.check()
            if time.monotonic() > deadline:
                causes: list[str] = []
                with contextlib.suppress(RiskstreamError):
                    causes = self.cluster.exceptions(self.job_id)
                parts = {part.name: part.state for part in self.stack.status()}
                msg = (
                    f"waiting for {what} took over {seconds:.0f} s; parts: {parts}; nine in ten "
                    f"payments within {self._lateness_ms} ms; causes: {causes[:1]}"
                )
                raise StandError(msg)
            time.sleep(POLL_SECONDS)

    def busiest_task_manager(self) -> str:
        """Return the TaskManager with the most tasks of the job.

        After a restart all tasks may run on one, and the end of the other would show nothing.
        """
        tasks: Counter[str] = Counter()

        def found() -> bool:
            tasks.clear()
            with contextlib.suppress(RiskstreamError):
                for vertex in self.cluster.job(self.job_id)["vertices"]:
                    path = f"/jobs/{self.job_id}/vertices/{vertex['id']}/taskmanagers"
                    for one in self.cluster._request("GET", path)["taskmanagers"]:
                        tasks[one["taskmanager-id"]] += one["status-counts"]["RUNNING"]
            return tasks.total() > 0

        self.wait("a TaskManager with tasks of the job", found, 60)
        return tasks.most_common(1)[0][0]

    def kill(self, part: str) -> None:
        """End a part as a crash would; return when the supervisor has seen it."""
        pid = self.stack.pid_of(part)
        os.kill(pid, signal.SIGKILL)

        def noticed() -> bool:
            return any(
                one.name == part and (one.pid != pid or one.state != "running")
                for one in self.stack.status()
            )

        self.wait(f"the supervisor to notice the end of {part}", noticed, 30)

    def renew_task_managers(self) -> None:
        """Replace the task managers: another release has changed the processes that ran it."""
        for name in ("taskmanager-1", "taskmanager-2"):
            # One that crashed by itself meanwhile is a new process already.
            with contextlib.suppress(LocalStackError):
                self.kill(name)

    @contextlib.contextmanager
    def frozen(self, part: str) -> Iterator[None]:
        """Stop a part's process in its tracks for as long as the context lasts."""
        pid = self.stack.pid_of(part)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            # The supervisor may have replaced it meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def suffer(self, fault: Callable[[], None], *, from_its_end: bool = False) -> Recovery:
        """Let a fault happen under load; return when payments are decided within a second again.

        Seconds count from the moment of the fault, or from its end where it is a state of affairs
        (an outage, a surge) and not an event.
        """
        restarts, row_lag_ms = self._restarts(), self._row_lag_ms()
        # In time is what was usual before the fault, and a little more.
        self._late_ms = LATE_MS
        self._calm_since(0)
        if self._lateness_ms < NEVER_MS:
            self._late_ms = max(LATE_MS, 3 * self._lateness_ms)
        self.keep_every_version()
        decided = self.one("SELECT count() AS n FROM {v}")
        in_flight = self.load.sent - decided
        self._suffered_ms = began_ms = time.time_ns() // 1_000_000
        with self._memory_watched() as peak:
            fault()
            ended_ms = time.time_ns() // 1_000_000
            self.wait("every part and task to run", self._settled, RECOVERY_SECONDS)
            settled_ms = time.time_ns() // 1_000_000
            calm = self._comes_to_rest(settled_ms)
        since_ms = ended_ms if from_its_end else began_ms
        grown = {
            name: f"{count - restarts.get(name, 0)} x {why}"
            for name, (count, why) in self._ends().items()
            if count > restarts.get(name, 0)
        }
        resumed, normal = self._times(since_ms, row_lag_ms)
        return Recovery(in_flight, resumed, normal, calm, peak["megabytes"], grown)

    def _comes_to_rest(self, settled_ms: int) -> bool:
        """Wait until payments are in time again; say no where the machine is too busy for that.

        Raises:
            StandError: no payment comes through at all.
        """
        seen = functools.partial(self._calm_since, settled_ms)
        self._lateness_ms = NEVER_MS
        self.wait("payments", lambda: seen() or self._lateness_ms < NEVER_MS, RECOVERY_SECONDS)
        deadline = time.monotonic() + REST_SECONDS
        while not seen():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _restarts(self) -> dict[str, int]:
        return {name: count for name, (count, _) in self._ends().items()}

    def _ends(self) -> dict[str, tuple[int, str]]:
        """Return how often each part was started again, and why the last time."""
        return {part.name: (part.restarts, part.why) for part in self.stack.status()}

    @contextlib.contextmanager
    def _memory_watched(self) -> Iterator[dict[str, int]]:
        """Note the most memory that all TaskManagers held together, once a second."""
        peak = {"megabytes": 0}
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                peak["megabytes"] = max(peak["megabytes"], self.memory_megabytes())

        thread = threading.Thread(target=watch, name="memory", daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            ended.set()
            thread.join(timeout=5)

    def memory_megabytes(self) -> int:
        """Return what the TaskManagers and what they started hold now; 0 for one that is away."""
        total = 0
        for part in self.stack.status():
            if part.name.startswith("taskmanager") and part.pid is not None:
                total += resident_bytes(tree(part.pid))
        return total // 2**20

    def _settled(self) -> bool:
        if any(part.state not in ("running", "external") for part in self.stack.status()):
            return False
        try:
            job = self.cluster.job(self.job_id)
        except RiskstreamError:
            return False
        return job["state"] == "RUNNING" and all(
            vertex["status"] == "RUNNING" for vertex in job["vertices"]
        )

    def _calm_since(self, settled_ms: int) -> bool:
        """Say whether payments of some whole seconds are stored, nine in ten decided in time."""
        now_ms = time.time_ns() // 1_000_000
        first_ms, last_ms = now_ms - CALM_MS - STORED_MS, now_ms - STORED_MS
        if first_ms < settled_ms:
            return False
        # Only parts of the last minute are read: a look must not slow down what it looks at.
        late = self.one(
            "SELECT if(count() > 0, toInt64(quantile(0.9)(decided_at_ms - published_at_ms)), "
            f"{NEVER_MS}) AS n FROM {SCORED_TABLE} "
            "WHERE inserted_at > now64(3) - INTERVAL 1 MINUTE "
            f"AND published_at_ms BETWEEN {first_ms} AND {last_ms}"
        )
        self._lateness_ms = late if late >= 0 else NEVER_MS
        return 0 <= late <= self._late_ms

    def _row_lag_ms(self) -> int:
        """Return how long after its decision a row is stored these days, at most but few."""
        return self.one(
            "SELECT if(count() > 0, toInt64(quantile(0.9)(toUnixTimestamp64Milli(inserted_at) - "
            f"decided_at_ms)), 1000) AS n FROM {SCORED_TABLE} "
            "WHERE inserted_at > now64(3) - INTERVAL 20 SECOND"
        )

    def _times(self, began_ms: int, row_lag_ms: int) -> tuple[float, float]:
        # A payment is there for its readers when it is decided and its row is stored as soon after
        # as rows were before the fault.
        there = f"greatest(decided_at_ms, toUnixTimestamp64Milli(inserted_at) - {row_lag_ms})"
        # The end of the longest time without a new payment: events decided again count once more.
        resumed = self.one(
            f"SELECT argMax(at, at - before) AS n FROM (SELECT at, lagInFrame(at, 1, {began_ms}) "
            "OVER (ORDER BY at ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before "
            f"FROM (SELECT DISTINCT {there} AS at FROM {{v}} "
            f"WHERE published_at_ms >= {began_ms - 60_000} AND {there} >= {began_ms}))"
        )
        # The last second of payments half of which were late. A few are late at any time on a
        # machine that is short of processors, and say nothing about the fault.
        normal = self.one(
            f"SELECT max(done) AS n FROM (SELECT max({there}) AS done FROM {{v}} "
            f"WHERE published_at_ms >= {began_ms} GROUP BY intDiv(published_at_ms, 1000) "
            f"HAVING median({there} - published_at_ms) > {self._late_ms})"
        )
        return (
            round(max(0, resumed - began_ms) / 1000, 3),
            round(max(0, normal - began_ms) / 1000, 3),
        )

    def audit(self, *, whole: bool = False) -> Audit:
        """Account for every offset since the last clean account, or for the `whole` log.

        The load may go on: what was published up to now is accounted for, and asked for again
        while events are on their way.
        """
        until_ms = time.time_ns() // 1_000_000
        since_ms = None if whole else self._clean_until_ms
        deadline = time.monotonic() + CLEAN_SECONDS
        while True:
            try:
                audit = audit_fraud(self.settings, since_ms=since_ms, until_ms=until_ms)
            except RetryableError:
                audit = None
            if audit is not None and audit.clean:
                self._clean_until_ms = until_ms
                return audit
            if time.monotonic() > deadline:
                if audit is not None:
                    return audit
                msg = "Kafka or ClickHouse did not come back"
                raise StandError(msg)
            time.sleep(1.0)

    def keep_every_version(self, *, keep: bool = True) -> None:
        """Keep replaced rows, to see what was decided again; forgotten when ClickHouse restarts.

        Not for long: ClickHouse holds inserts up when parts pile up.
        """
        verb = "STOP" if keep else "START"
        with contextlib.suppress(RiskstreamError):
            self.clickhouse.execute(f"SYSTEM {verb} MERGES {SCORED_TABLE}")

    def decided_again(self) -> tuple[int, int]:
        """Return how many events the last fault had decided again, and how many of them otherwise.

        Only rows that are not merged yet can tell, so ask soon after a fault. The same rules and
        model are compared: a change of them may come before or after an event that is read again.
        """
        answer = ", ".join(f"toString(`{name}`)" for name in ANSWER)
        (row,) = self._results.rows(
            f"SELECT count() AS n, countIf(answers > versions) AS otherwise FROM ("
            f"SELECT uniqExact({answer}, model_version, rule_set_version) AS answers, "
            "uniqExact(model_version, rule_set_version) AS versions "
            f"FROM {SCORED_TABLE} "
            "GROUP BY kafka_topic, kafka_partition, kafka_offset "
            f"HAVING count() > 1 AND max(decided_at_ms) >= {self._suffered_ms})"
        )
        return int(row["n"]), int(row["otherwise"])

    def versions_of(self, places: list[Coordinate]) -> list[dict[str, Any]]:
        """Return every version of the rows at these places: the evidence of a wrong alert."""
        found: list[dict[str, Any]] = []
        for place in places[:10]:
            found += self._results.rows(
                f"SELECT kafka_partition, kafka_offset, event_time_ms, published_at_ms, "
                f"ingested_at_ms, decided_at_ms, flags, customer_id, terminal_id, "
                f"{', '.join(f'`{name}`' for name in ANSWER)} FROM {SCORED_TABLE} "
                "WHERE kafka_topic = {topic:String} AND kafka_partition = {partition:Int32} "
                "AND kafka_offset = {offset:Int64} ORDER BY decided_at_ms",
                {"topic": place.topic, "partition": place.partition, "offset": place.offset},
            )
        return found

    def pay(self, customer: bytes) -> None:
        """Publish one payment of a customer of one's own choice, of the newest event time."""
        publish_payment(
            self.settings, customer, max(0, self.one("SELECT max(event_time_ms) AS n FROM {v}"))
        )

    def different_features(self) -> list[dict[str, Any]]:
        """Return the rows that differ from an undisturbed run, in one process, of the same records.

        Features are compared bit by bit, whatever came of profiles and decisions. Each row says
        where it is and which features differ: (here, undisturbed).
        """
        offline = offline_settings(
            self.settings.home, f"schemas.registry={self.settings.schemas.registry}"
        )
        undisturbed = Fraud(offline, self.settings.flink.shards)
        for frames in sent_in_stretches(self.settings.kafka):
            undisturbed.send(frames)
        names = FRAUD_FEATURES.names
        columns = ", ".join(f"reinterpretAsUInt64(`{n}`) AS `{n}`" for n in names)
        prefix = self.settings.kafka.topics.prefix
        stored = {
            (
                row["kafka_topic"].removeprefix(prefix),
                row["kafka_partition"],
                row["kafka_offset"],
            ): row
            for row in self._results.rows(
                "SELECT kafka_topic, kafka_partition, kafka_offset, event_time_ms, "
                f"published_at_ms, ingested_at_ms, flags, {columns} FROM scored_transactions"
            )
        }
        expected = undisturbed.by_place()
        found: list[dict[str, Any]] = []
        for place in sorted(stored.keys() | expected.keys()):
            here, there = stored.get(place), expected.get(place)
            if here is None or there is None:
                found.append({"place": place, "only": "here" if there is None else "undisturbed"})
                continue
            unlike = {
                name: (_number(here[name]), _number(_bits(there[name])))
                for name in names
                if here[name] != _bits(there[name])
            }
            if unlike:
                about = ("event_time_ms", "published_at_ms", "ingested_at_ms", "flags")
                found.append({"place": place, **{n: here[n] for n in about}, "unlike": unlike})
        return found


def _number(bits: int) -> float:
    return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])


def _bits(hexadecimal: str) -> int:
    return int.from_bytes(bytes.fromhex(hexadecimal), "little")
