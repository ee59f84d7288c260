"""One life of a contestant under measurement: what is sent, and what it took.

A session sends a stream whose event time only goes forward and reads the contestant's rows and
alerts. It knows nothing of the order of measurements (`measure`).
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Final

import numpy as np

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.payments import FEATURES
from benchmarks.flames import record_java, record_python
from benchmarks.load import AlertTimes, percentiles, send_at_rate, send_flat_out
from benchmarks.processes import cpu_seconds, machine_seconds, resident_bytes, tree
from benchmarks.reference import Expected, Reference
from benchmarks.services import Services
from benchmarks.workload import Record
from connectors.clickhouse import ClickHouseClient
from connectors.kafka import librdkafka_config
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.registry import open_registry

__all__ = ["LEAD_SECONDS", "Session", "UnequalResultsError", "compare_rows", "lag_growth", "pieces"]

STALL_SECONDS: Final = 60
FIRST_ROW_SECONDS: Final = 180
# Different builds of ONNX Runtime add the leaves of a forest in a different order, in float32.
SCORE_TOLERANCE: Final = 1e-6
LEAD_SECONDS: Final = 2.0
"""Of an open-loop load this much is sent first and counts for no latency: connections wake."""
# Terminal windows end a week back. A piece of the compared stream is done before the next is sent,
# so that no partition, nor a slow worker, can be a week behind another.
PIECE_MS: Final = 6 * 86_400_000
# Shorter lags are the gathering of a batch, not a queue.
SHORT_LAG_MS: Final = 200.0
FLAME_SECONDS: Final = 8


class UnequalResultsError(RuntimeError):
    """A contestant's results differ from the reference: no timing of it means anything."""


class Session:
    """Sends to one started contestant, waits, and measures; `say` tells of progress."""

    def __init__(
        self,
        contestant: Contestant,
        services: Services,
        timed: Sequence[Record],
        say: Callable[[str], None],
    ) -> None:
        settings = services.settings_of(contestant.name)
        self._contestant = contestant
        self._services = services
        self._settings = settings
        self._timed = timed
        # The garbage collector would walk millions of records again and again, a second each time,
        # in which nobody notes when an alert arrives.
        gc.freeze()
        self.say = say
        self._client = ClickHouseClient(settings.clickhouse)
        self._kafka: dict[str, object] = dict(librdkafka_config(settings.kafka))
        self._decoder = RecordDecoder(open_registry(settings.schemas), contract("alert"))
        self._topic = settings.kafka.topics.name("transactions")
        self._sent = 0
        self._at = 0

    def take(self, count: int) -> Sequence[Record]:
        """Return the next records of the timed stream: fewer where it ends, but some.

        Raises:
            LookupError: when none is left.
        """
        records = self._timed[self._at : self._at + count]
        if not records:
            msg = f"the timed stream of {len(self._timed):,} records is used up"
            raise LookupError(msg)
        self._at += len(records)
        return records

    def compare(
        self, records: Sequence[Record], rate: float, began: float, reference: Reference
    ) -> dict[str, Any]:
        """Send a stream and compare every value; time the first row since `began`.

        Raises:
            UnequalResultsError: when a value, a row or an alert differs.
        """
        watch = self._watch()
        head, rest = records[:100], records[100:]
        send_at_rate(self._kafka, self._topic, head, rate)
        self._wait(len(head), FIRST_ROW_SECONDS)
        first = int(
            self._rows("SELECT min(decided_at_ms) AS t FROM scored_transactions_raw")[0]["t"]
        )
        waited = time.monotonic() - began - (time.time() - first / 1000)
        self._sent = len(head)
        for piece in pieces(rest, PIECE_MS):
            send_at_rate(self._kafka, self._topic, piece, rate)
            self._sent += len(piece)
            self._wait(self._sent, STALL_SECONDS)
        time.sleep(0.5)
        watch.stop()
        expected = reference.expect(records)
        names = ", ".join(FEATURES)
        rows = self._rows(
            f"SELECT event_id, score, toString(decision) AS decision, "
            f"arraySort(rules_fired) AS fired, [{names}] AS features FROM scored_transactions_raw"
        )
        worst = compare_rows(rows, expected)
        alerts = {self._decoder.decode(one.value)["event_id"] for one in watch.arrivals}
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

    def at_rate(self, rate: float, seconds: float) -> dict[str, Any]:
        """Send for a while at a rate; the first seconds count for no latency."""
        measured = self.send(self.take(int(rate * (seconds + LEAD_SECONDS))), rate)
        late = measured["decision_latency"]
        self.say(
            f"{self._contestant.title}: at {rate:,.0f}/s p50 {late['p50_ms']} p99 {late['p99_ms']}"
        )
        return {"rate": round(rate), **measured}

    def drain(self, count: int) -> dict[str, Any]:
        """Send a backlog at once and wait until it is done."""
        drained = self.send(self.take(count), None)
        self.say(f"{self._contestant.title}: {drained['events_per_second']:,.0f} events/s")
        return drained

    def send(self, records: Sequence[Record], rate: float | None) -> dict[str, Any]:
        """Send records, wait for their rows, and return what it took."""
        watch = self._watch()
        parts = {**self._services.processes(), **self._contestant.parts()}
        processes = self._contestant.processes()
        used_by = {name: cpu_seconds(pids) for name, pids in parts.items()}
        own, (busy, stolen) = time.process_time(), machine_seconds()
        cpu, began, began_ms = cpu_seconds(processes), time.monotonic(), int(time.time() * 1000)
        if rate is None:
            load = send_flat_out(self._kafka, self._topic, records)
        else:
            load = send_at_rate(self._kafka, self._topic, records, rate)
        sent_after = time.monotonic() - began
        self._sent += len(records)
        self._wait(self._sent, STALL_SECONDS)
        used = cpu_seconds(processes) - cpu
        by_part = {name: cpu_seconds(pids) - used_by[name] for name, pids in parts.items()}
        by_part |= {"generator": load.cpu_seconds, "harness": time.process_time() - own}
        now_busy, now_stolen = machine_seconds()
        took = time.monotonic() - began
        # The last alerts are on their way while the last rows are stored.
        time.sleep(0.5)
        watch.stop()
        lead_ms = 0 if rate is None else int(1000 * LEAD_SECONDS)
        found = self._rows(
            "SELECT count() AS n, max(decided_at_ms) AS last, min(published_at_ms) AS first, "
            f"quantilesExactIf(0.5, 0.99, 0.999, 1)(decided_at_ms - published_at_ms, "
            f"published_at_ms >= {began_ms + lead_ms}) AS q "
            f"FROM scored_transactions_raw WHERE published_at_ms >= {began_ms}"
        )[0]
        if int(found["n"]) < len(records):
            msg = f"{len(records):,} payments gave {found['n']} rows"
            raise UnequalResultsError(msg)
        taken = max(0.001, (int(found["last"]) - int(found["first"])) / 1000)
        published = [
            (one.arrived_ms, self._decoder.decode(one.value)["published_at_ms"])
            for one in watch.arrivals
        ]
        waited = [arrived - at for arrived, at in published if at >= began_ms + lead_ms]
        return {
            "events": len(records),
            "seconds": round(taken, 3),
            "events_per_second": round(len(records) / taken, 1),
            "generator_seconds": round(sent_after, 3),
            "generator_latest_ms": load.latest_ms if rate is not None else None,
            "lag_growth": None if rate is None else self._lag_growth(began_ms),
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
            "cpu_us_per_event_by_part": {
                name: round(seconds * 1e6 / len(records), 2) for name, seconds in by_part.items()
            },
            "cores_used": round(used / taken, 2),
            "machine_cores_busy": round((now_busy - busy) / took, 2),
            "machine_cores_stolen": round((now_stolen - stolen) / took, 2),
            "others_cores": round((now_busy - busy - sum(by_part.values())) / took, 2),
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
        over = round(max(0, max(slow, default=0) - marks[1]) / 1000, 1)
        self.say(f"{self._contestant.title}: surge over after {over} s")
        return {
            "base_rate": round(base),
            "surge_rate": round(10 * base),
            "surge_seconds": seconds,
            "slowest_before_ms": max(before, default=0),
            "slowest_ms": max((int(one["worst"]) for one in slices), default=0),
            "recovered_seconds": over,
        }

    @property
    def workers(self) -> list[int]:
        """Return the processes that a TaskManager or a worker is, without what they started."""
        every = self._contestant.processes()
        return [pid for pid in every if not any(pid in tree(one)[1:] for one in every)]

    def under_load(self, rate: float, seconds: float, work: Callable[[], None]) -> int:
        """Do `work` while records are sent at a rate; return how many were, when all have rows."""
        records = self.take(int(rate * seconds))
        sender = Thread(target=send_at_rate, args=(self._kafka, self._topic, records, rate))
        sender.start()
        try:
            work()
        finally:
            sender.join()
            self._sent += len(records)
            self._wait(self._sent, STALL_SECONDS)
        return len(records)

    def sample_stacks(self, rate: float, folder: Path) -> None:
        """Draw flame graphs of the first worker under load."""
        name, worker = self._contestant.name, self.workers[0]

        def sample() -> None:
            record_python(worker, FLAME_SECONDS, folder / f"flame_{name}_python.svg")
            record_java(worker, FLAME_SECONDS, folder / f"flame_{name}_java.svg")

        self.under_load(rate, 2 * FLAME_SECONDS + 4, sample)

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
        gap = round(int(found["worst"]) / 1000, 1)
        self.say(f"{self._contestant.title}: back after {gap} s")
        return {
            "rate": round(rate),
            "gap_seconds": gap,
            "decided_twice": int(total["n"]) - len(records),
        }

    def _watch(self) -> AlertTimes:
        watch = AlertTimes(self._kafka, self._settings.kafka.topics.name("alerts"))
        watch.start()
        watch.ready.wait(timeout=30)
        return watch

    def _lag_growth(self, began_ms: int) -> float:
        slices = self._rows(
            "SELECT intDiv(published_at_ms, 250) / 4 AS t, "
            "median(decided_at_ms - published_at_ms) AS lag FROM scored_transactions_raw "
            f"WHERE published_at_ms >= {began_ms + int(1000 * LEAD_SECONDS)} GROUP BY t ORDER BY t"
        )
        return lag_growth([(float(one["t"]), float(one["lag"])) for one in slices])

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


def pieces(records: Sequence[Record], span_ms: int) -> Iterator[Sequence[Record]]:
    """Yield records in order, in pieces whose first and last event are less than a span apart."""
    first = 0
    for at, record in enumerate(records):
        if record.event_time_ms - records[first].event_time_ms >= span_ms:
            yield records[first:at]
            first = at
    if records:
        yield records[first:]


def lag_growth(slices: Sequence[tuple[float, float]]) -> float:
    """Return by how much the lag grew, in seconds a second; 0 while it is short or falls.

    `slices` are (when in seconds, median lag in ms), in order. The slope is that of a line through
    all of them; a lag that ends short is that of a batch, and does not grow whatever the line says.
    """
    if len(slices) < 4:
        return 0.0
    times, lags = np.array(slices).T
    if lags[-len(lags) // 4 :].mean() < SHORT_LAG_MS:
        return 0.0
    slope = float(np.polyfit(times, lags / 1000, 1)[0])
    return round(max(0.0, slope), 4)


def compare_rows(rows: Sequence[Mapping[str, Any]], expected: Mapping[str, Expected]) -> float:
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
