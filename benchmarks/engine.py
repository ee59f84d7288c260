"""This engine as a contestant: the fraud job on its own local stack, drained and then paced."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.load import AlertTimes, percentiles, send_at_rate, send_flat_out
from benchmarks.processes import cpu_seconds, resident_bytes, tree
from benchmarks.workload import Workload
from connectors.clickhouse import ClickHouseClient
from connectors.flink import FlinkCluster
from connectors.kafka import librdkafka_config
from connectors.local.stack import LocalStack, resolved_settings
from connectors.profile_loading import load_profiles
from connectors.profiles import redis_client
from connectors.settings import Settings
from jobs.submission import submit_job
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.registry import open_registry

__all__ = ["run_engine"]

STALL_SECONDS: Final = 60
# The first events meet cold caches and a JVM that still compiles; they are not measured.
WARM_EVENTS: Final = 5_000


def run_engine(
    settings: Settings,
    events: int,
    rates: Sequence[float],
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Start a stack, run the job, drain `events`, then `seconds` at each rate; stop everything."""
    total = WARM_EVENTS + events + int(sum(rates) * seconds)
    workload = Workload(total)
    records = workload.records
    stack = LocalStack(settings)
    stack.down(purge=True)
    try:
        began = time.monotonic()
        stack.up(lambda part: None)
        ready = resolved_settings(settings)
        stack_seconds = time.monotonic() - began
        client = redis_client(ready.redis)
        for profiles in workload.profiles():
            load_profiles(client, profiles)
        began = time.monotonic()
        job_id = submit_job("fraud", ready)
        start_seconds = time.monotonic() - began
        run = _Run(stack, ready)
        say(f"job runs after {start_seconds:.1f} s; warming up")
        run.send(records[:WARM_EVENTS], None)
        say(f"draining {events:,} events")
        result: dict[str, Any] = {
            "mode": ready.flink.execution_mode,
            "stack_start_seconds": round(stack_seconds, 1),
            "job_start_seconds": round(start_seconds, 1),
            "drained": run.send(records[WARM_EVENTS : WARM_EVENTS + events], None),
            "at_rate": [],
        }
        at = WARM_EVENTS + events
        for rate in rates:
            count = int(rate * seconds)
            say(f"{rate:,.0f} events/s for {seconds:g} s")
            measured = run.send(records[at : at + count], rate)
            result["at_rate"].append({"rate": rate, **measured})
            at += count
        assert ready.flink.rest_url is not None
        points = FlinkCluster(ready.flink.rest_url).checkpoints(job_id)
        latest = (points.get("latest") or {}).get("completed") or {}
        result["state_bytes"] = latest.get("state_size")
        result["workload_sha256"] = workload.sha256()
        return result
    finally:
        stack.down(purge=True)


class _Run:
    def __init__(self, stack: LocalStack, settings: Settings) -> None:
        self._settings = settings
        self._client = ClickHouseClient(settings.clickhouse)
        self._kafka: dict[str, object] = dict(librdkafka_config(settings.kafka))
        self._decoder = RecordDecoder(open_registry(settings.schemas), contract("alert"))
        self._managers = [
            stack.pid_of(f"taskmanager-{number}")
            for number in range(1, settings.local.task_managers + 1)
        ]
        self._scored = 0

    def send(self, records: Sequence[Any], rate: float | None) -> dict[str, Any]:
        topic = self._settings.kafka.topics.name("transactions")
        watch = AlertTimes(self._kafka, self._settings.kafka.topics.name("alerts"))
        watch.start()
        watch.ready.wait(timeout=30)
        processes = [one for root in self._managers for one in tree(root)]
        cpu, began, began_ms = cpu_seconds(processes), time.monotonic(), int(time.time() * 1000)
        if rate is None:
            load = send_flat_out(self._kafka, topic, records)
        else:
            load = send_at_rate(self._kafka, topic, records, rate)
        self._wait(self._scored + len(records))
        self._scored += len(records)
        used = cpu_seconds(processes) - cpu
        # Rows come a second after alerts at most the other way round; give the last alerts a
        # moment.
        time.sleep(0.5)
        watch.stop()
        found = self._client.rows(
            "SELECT max(decided_at_ms) AS last, min(published_at_ms) AS first, "
            "quantilesExact(0.5, 0.99, 0.999, 1)(decided_at_ms - published_at_ms) AS q "
            "FROM scored_transactions_raw WHERE published_at_ms >= {began:Int64}",
            {"began": began_ms},
        )[0]
        taken = max(0.001, (int(found["last"]) - int(found["first"])) / 1000)
        waited = [
            arrived - self._decoder.decode(value)["published_at_ms"]
            for arrived, value in watch.arrivals
        ]
        return {
            "events": len(records),
            "seconds": round(taken, 3),
            "wall_seconds": round(time.monotonic() - began, 3),
            "events_per_second": round(len(records) / taken, 1),
            "generator_latest_ms": load.latest_ms,
            "alert_latency": percentiles(waited),
            "decision_latency_ms": [float(value) for value in found["q"]],
            "cpu_seconds": round(used, 2),
            "cpu_us_per_event": round(used * 1e6 / len(records), 2),
            "resident_mb": round(resident_bytes(processes) / 1e6),
        }

    def _wait(self, rows: int) -> None:
        seen, changed = -1, time.monotonic()
        while True:
            now = int(self._client.rows("SELECT count() AS n FROM scored_transactions_raw")[0]["n"])
            if now >= rows:
                return
            if now != seen:
                seen, changed = now, time.monotonic()
            if time.monotonic() - changed > STALL_SECONDS:
                msg = f"waiting for {rows:,} rows: {now:,} came, none for {STALL_SECONDS} s"
                raise RuntimeError(msg)
            time.sleep(0.25)
