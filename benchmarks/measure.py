"""Measure one contestant: results compared first, then throughput, latency, CPU, recovery, state.

All of it happens in one life of the contestant, on one stream whose event time only goes forward:

1. it starts, and the clock stops when the first payment is scored (start-up);
2. a stream of weeks at a modest rate; every feature, decision and alert is compared with the plain
   Python reference, and a difference ends the run (`UnequalResultsError`);
3. a backlog is sent at once and drained (throughput, CPU, memory), sums compared again;
4. open-loop load at each rate (latency), only as far as it was able to drain;
5. 80 % of its own maximum;
6. a surge of ten times what it was given before, one and a half times its maximum;
7. a worker is killed under load (recovery), and every payment must have its row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Final

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.payments import FEATURES
from benchmarks.flames import record_java, record_python
from benchmarks.load import AlertTimes, percentiles, send_at_rate, send_flat_out
from benchmarks.processes import cpu_seconds, resident_bytes, tree
from benchmarks.reference import Expected, Reference
from benchmarks.services import Services
from benchmarks.workload import Record
from connectors.clickhouse import ClickHouseClient
from connectors.kafka import librdkafka_config
from connectors.settings import Settings
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.registry import open_registry

__all__ = ["Plan", "UnequalResultsError", "compare_rows", "measure"]

STALL_SECONDS: Final = 60
FIRST_ROW_SECONDS: Final = 180
# Different builds of ONNX Runtime add the leaves of a forest in a different order, in float32.
SCORE_TOLERANCE: Final = 1e-6
# A contestant that drains r events/s is asked for no more than this share of r.
WITHIN_REACH: Final = 1.0
# p99 is meaningless when the generator itself was late.
RECOVERY_RATE: Final = 1_000.0
FLAME_SECONDS: Final = 8


class UnequalResultsError(RuntimeError):
    """A contestant's results differ from the reference: no timing of it means anything."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    equality: Sequence[Record]
    timed: Sequence[Record]
    drain_events: int | None
    warm_events: int
    rates: Sequence[float]
    seconds: float
    recovery_seconds: float
    surge_seconds: float
    flames: Path | None = None


def measure(
    contestant: Contestant,
    services: Services,
    plan: Plan,
    reference: Reference,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the contestant through the plan; it is stopped whatever happens.

    Raises:
        UnequalResultsError: when its results are wrong.
        RuntimeError: when it stops making progress.
    """
    contestant.set_up()
    result: dict[str, Any] = {
        "name": contestant.name,
        "title": contestant.title,
        "load_before": round(os.getloadavg()[0], 1),
    }
    began = time.monotonic()
    try:
        contestant.start(services)
        result["submitted_seconds"] = round(time.monotonic() - began, 1)
        run = _Run(contestant, services.settings_of(contestant.name), plan, reference)
        result["equality"] = run.compare(plan.equality, contestant.equality_rate, began)
        result["first_row_seconds"] = result["equality"].pop("first_row_seconds")
        say(f"{contestant.title}: equal; first row after {result['first_row_seconds']} s")
        run.send(run.take(plan.warm_events), None)
        count = min(contestant.drain_events, plan.drain_events or contestant.drain_events)
        drained = result["drained"] = run.send(run.take(count), None)
        say(f"{contestant.title}: {drained['events_per_second']:,.0f} events/s")
        maximum = drained["events_per_second"]
        result["at_rate"] = []
        for rate in plan.rates:
            if rate > WITHIN_REACH * maximum:
                break
            result["at_rate"].append(run.at_rate(rate, say))
        if plan.rates:
            result["at_80_percent"] = run.at_rate(0.8 * maximum, say)
        result["state_bytes"] = contestant.state_bytes()
        if plan.surge_seconds:
            result["surge"] = run.surge(0.15 * maximum, plan.surge_seconds)
            say(f"{contestant.title}: surge over after {result['surge']['recovered_seconds']} s")
        result["task_managers"] = len(run.workers)
        if plan.flames is not None and contestant.name.startswith("riskstream"):
            run.sample_stacks(0.5 * maximum, plan.flames)
        if plan.recovery_seconds:
            rate = min(RECOVERY_RATE, 0.5 * maximum)
            result["recovery"] = run.recover(rate, plan.recovery_seconds)
            say(f"{contestant.title}: back after {result['recovery']['gap_seconds']} s")
        result["load_after"] = round(os.getloadavg()[0], 1)
        return result
    finally:
        contestant.stop()


class _Run:
    def __init__(
        self, contestant: Contestant, settings: Settings, plan: Plan, reference: Reference
    ) -> None:
        self._contestant = contestant
        self._settings = settings
        self._plan = plan
        self._reference = reference
        self._client = ClickHouseClient(settings.clickhouse)
        self._kafka: dict[str, object] = dict(librdkafka_config(settings.kafka))
        self._decoder = RecordDecoder(open_registry(settings.schemas), contract("alert"))
        self._topic = settings.kafka.topics.name("transactions")
        self._sent = 0
        self._at = 0

    def take(self, count: int) -> Sequence[Record]:
        """Return the next records of the timed stream: fewer where it ends, but some.

        Raises:
            RuntimeError: when none is left.
        """
        records = self._plan.timed[self._at : self._at + count]
        if not records:
            msg = f"the timed stream of {len(self._plan.timed):,} records is used up"
            raise RuntimeError(msg)
        self._at += len(records)
        return records

    def compare(self, records: Sequence[Record], rate: float, began: float) -> dict[str, Any]:
        """Send a stream and compare every value; time the first row."""
        watch = AlertTimes(self._kafka, self._settings.kafka.topics.name("alerts"))
        watch.start()
        watch.ready.wait(timeout=30)
        head, rest = records[:100], records[100:]
        send_at_rate(self._kafka, self._topic, head, rate)
        self._wait(len(head), FIRST_ROW_SECONDS)
        first = int(
            self._rows("SELECT min(decided_at_ms) AS t FROM scored_transactions_raw")[0]["t"]
        )
        waited = time.monotonic() - began - (time.time() - first / 1000)
        send_at_rate(self._kafka, self._topic, rest, rate)
        self._sent = len(records)
        self._wait(self._sent, STALL_SECONDS)
        time.sleep(0.5)
        watch.stop()
        expected = self._reference.expect(records)
        names = ", ".join(FEATURES)
        rows = self._rows(
            f"SELECT event_id, score, toString(decision) AS decision, "
            f"arraySort(rules_fired) AS fired, [{names}] AS features FROM scored_transactions_raw"
        )
        worst = compare_rows(rows, expected)
        alerts = {self._decoder.decode(value)["event_id"] for _, value in watch.arrivals}
        wanted = {event for event, one in expected.items() if one.decision != "approve"}
        if alerts != wanted:
            msg = (
                f"{len(wanted - alerts)} alerts are missing and {len(alerts - wanted)} are not "
                f"expected, of {len(wanted)}: {sorted(wanted ^ alerts)[:5]}"
            )
            raise UnequalResultsError(msg)
        return {
            "events": len(records),
            "values": len(records) * (len(FEATURES) + 3),
            "alerts": len(alerts),
            "largest_score_difference": worst,
            "first_row_seconds": round(waited, 1),
        }

    def at_rate(self, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
        """Send for a while at a rate."""
        measured = self.send(self.take(int(rate * self._plan.seconds)), rate)
        late = measured["decision_latency"]
        say(f"{self._contestant.title}: at {rate:,.0f}/s p50 {late['p50_ms']} p99 {late['p99_ms']}")
        return {"rate": round(rate), **measured}

    def send(self, records: Sequence[Record], rate: float | None) -> dict[str, Any]:
        """Send records, wait for their rows, and return what it took."""
        watch = AlertTimes(self._kafka, self._settings.kafka.topics.name("alerts"))
        watch.start()
        watch.ready.wait(timeout=30)
        processes = self._contestant.processes()
        cpu, began, began_ms = cpu_seconds(processes), time.monotonic(), int(time.time() * 1000)
        if rate is None:
            load = send_flat_out(self._kafka, self._topic, records)
        else:
            load = send_at_rate(self._kafka, self._topic, records, rate)
        sent_after = time.monotonic() - began
        self._sent += len(records)
        self._wait(self._sent, STALL_SECONDS)
        used = cpu_seconds(processes) - cpu
        # The last alerts are on their way while the last rows are stored.
        time.sleep(0.5)
        watch.stop()
        found = self._rows(
            "SELECT count() AS n, max(decided_at_ms) AS last, min(published_at_ms) AS first, "
            "quantilesExact(0.5, 0.99, 0.999, 1)(decided_at_ms - published_at_ms) AS q "
            f"FROM scored_transactions_raw WHERE published_at_ms >= {began_ms}"
        )[0]
        if int(found["n"]) < len(records):
            msg = f"{len(records):,} payments gave {found['n']} rows"
            raise UnequalResultsError(msg)
        taken = max(0.001, (int(found["last"]) - int(found["first"])) / 1000)
        waited = [
            arrived - self._decoder.decode(value)["published_at_ms"]
            for arrived, value in watch.arrivals
        ]
        return {
            "events": len(records),
            "seconds": round(taken, 3),
            "events_per_second": round(len(records) / taken, 1),
            "generator_seconds": round(sent_after, 3),
            "generator_latest_ms": load.latest_ms if rate is not None else None,
            "alert_latency": percentiles(waited),
            "decision_latency": dict(
                zip(
                    ("p50_ms", "p99_ms", "p99_9_ms", "max_ms"),
                    [float(value) for value in found["q"]],
                    strict=True,
                )
            ),
            "rows_twice": int(found["n"]) - len(records),
            "cpu_seconds": round(used, 2),
            "cpu_us_per_event": round(used * 1e6 / len(records), 2),
            "cores_used": round(used / taken, 2),
            "resident_mb": round(resident_bytes(processes) / 1e6),
            "load_average": round(os.getloadavg()[0], 1),
        }

    def surge(self, base: float, seconds: float) -> dict[str, Any]:
        """Send at `base`, at ten times as much, at `base` again; return how long it was felt.

        It is over with the last slice of a tenth of a second whose slowest payment waited longer
        than twice the slowest before the surge (at least 100 ms).
        """
        began_ms = int(time.time() * 1000)
        marks = []
        for rate, length in ((base, seconds), (10 * base, seconds), (base, 4 * seconds)):
            records = self.take(int(rate * length))
            send_at_rate(self._kafka, self._topic, records, rate)
            self._sent += len(records)
            marks.append(int(time.time() * 1000))
        self._wait(self._sent, STALL_SECONDS)
        slices = self._rows(
            "SELECT intDiv(published_at_ms, 100) * 100 AS t, "
            "max(decided_at_ms - published_at_ms) AS worst FROM scored_transactions_raw "
            f"WHERE published_at_ms >= {began_ms} GROUP BY t ORDER BY t"
        )
        # The first second pays for connections and caches that slept.
        before = [
            int(one["worst"])
            for one in slices
            if began_ms + 1_000 <= int(one["t"]) < marks[0] - 100
        ]
        calm = max(100, 2 * max(before, default=50))
        slow = [int(one["t"]) for one in slices if int(one["worst"]) > calm]
        return {
            "base_rate": round(base),
            "surge_rate": round(10 * base),
            "surge_seconds": seconds,
            "slowest_before_ms": max(before, default=0),
            "slowest_ms": max((int(one["worst"]) for one in slices), default=0),
            "recovered_seconds": round(max(0, max(slow, default=0) - marks[1]) / 1000, 1),
        }

    @property
    def workers(self) -> list[int]:
        """Return the processes that a TaskManager or a worker is, without what they started."""
        every = self._contestant.processes()
        return [pid for pid in every if not any(pid in tree(one)[1:] for one in every)]

    def sample_stacks(self, rate: float, folder: Path) -> None:
        """Draw flame graphs of the first worker under load."""
        name, worker = self._contestant.name, self.workers[0]
        records = self.take(int(rate * (2 * FLAME_SECONDS + 4)))
        sender = Thread(target=send_at_rate, args=(self._kafka, self._topic, records, rate))
        sender.start()
        try:
            record_python(worker, FLAME_SECONDS, folder / f"flame_{name}_python.svg")
            record_java(worker, FLAME_SECONDS, folder / f"flame_{name}_java.svg")
        finally:
            sender.join()
            self._sent += len(records)
            self._wait(self._sent, STALL_SECONDS)

    def recover(self, rate: float, seconds: float) -> dict[str, Any]:
        """Kill a worker after a quarter of the load; return for how long nothing was decided."""
        records = self.take(int(rate * seconds))
        quarter = len(records) // 4
        began_ms = int(time.time() * 1000)
        send_at_rate(self._kafka, self._topic, records[:quarter], rate)
        self._contestant.kill()
        send_at_rate(self._kafka, self._topic, records[quarter:], rate)
        self._sent += len(records)
        self._wait(self._sent, STALL_SECONDS * 2, distinct=True)
        # By the last decision on each event: what was decided before the failure may be decided
        # again, and it is then that its row is there for good.
        found = self._rows(
            "SELECT max(t) AS worst, count() AS n FROM (SELECT event_id, "
            "max(decided_at_ms) - min(published_at_ms) AS t FROM scored_transactions_raw "
            f"WHERE published_at_ms >= {began_ms} GROUP BY event_id)"
        )[0]
        total = self._rows(
            f"SELECT count() AS n FROM scored_transactions_raw WHERE published_at_ms >= {began_ms}"
        )[0]
        if int(found["n"]) != len(records):
            msg = f"{len(records):,} payments around a failure gave {found['n']} rows"
            raise UnequalResultsError(msg)
        return {
            "rate": round(rate),
            "gap_seconds": round(int(found["worst"]) / 1000, 1),
            "decided_twice": int(total["n"]) - len(records),
        }

    def _rows(self, query: str) -> list[dict[str, Any]]:
        return self._client.rows(query)

    def _wait(self, rows: int, stall_seconds: float, *, distinct: bool = False) -> None:
        what = "uniqExact(event_id)" if distinct else "count()"
        query = f"SELECT {what} AS n FROM scored_transactions_raw"
        seen, changed = -1, time.monotonic()
        while True:
            now = int(self._rows(query)[0]["n"])
            if now >= rows:
                return
            self._contestant.processes()
            if now != seen:
                seen, changed = now, time.monotonic()
            if time.monotonic() - changed > stall_seconds:
                msg = f"waiting for {rows:,} rows: {now:,} came, none for {stall_seconds} s"
                raise RuntimeError(msg)
            time.sleep(0.25)


def compare_rows(rows: Sequence[dict[str, Any]], expected: dict[str, Expected]) -> float:
    """Return the largest difference of a score; everything else must be the same.

    Raises:
        UnequalResultsError: naming the first event that differs.
    """
    found = {row["event_id"]: row for row in rows}
    if len(rows) != len(expected) or found.keys() != expected.keys():
        msg = f"{len(expected)} payments gave {len(rows)} rows of {len(found)} events"
        raise UnequalResultsError(msg)
    worst = 0.0
    for event, wanted in expected.items():
        row = found[event]
        difference = abs(row["score"] - wanted.score)
        same = (
            list(row["features"]) == wanted.features
            and row["decision"] == wanted.decision
            and list(row["fired"]) == wanted.fired
        )
        # Not `>`: a score that is no number is never close enough.
        if not same or not difference <= SCORE_TOLERANCE:
            msg = f"event {event!r}: found {row!r}, expected {wanted!r}"
            raise UnequalResultsError(msg)
        worst = max(worst, difference)
    return worst
