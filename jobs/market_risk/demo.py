"""Run the market risk job end to end on a running stack: what `riskstream demo-risk` does.

Reference data first, then recorded trades, quotes and fills as fast as the job takes them, then a
seeded market and its desks at the speed of their own clock. Everything is counted in the views that
users read, and the positions are compared with the fills that the blotter shows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.clickhouse import ClickHouseClient, ClickHouseUnavailable
from connectors.flink import FlinkCluster
from connectors.kafka import end_offsets, librdkafka_config
from connectors.producers.publisher import KafkaPublisher
from connectors.settings import Settings
from jobs.market_risk.daily import DAY_MS
from jobs.market_risk.feed import CONTRACTS, MarketFeed
from jobs.market_risk.parts import STREAM_TOPICS
from jobs.market_risk.recording import (
    MarketSlice,
    last_time_ms,
    market_slices,
    recorded_slices,
    write_recording,
)
from jobs.market_risk.simulator import DeskConfig, MarketSimulator
from jobs.submission import submit_job
from schemas.columns import Columns, StringColumn
from schemas.errors import FatalError

__all__ = [
    "Market",
    "RiskDemoError",
    "RiskDemoResult",
    "RowWatch",
    "row_latencies",
    "run_risk_demo",
]

# Nothing new for this long, with events missing: the job is stuck, not slow.
STALL_SECONDS: Final = 90
POLL_SECONDS: Final = 0.25
# Rows carry the time they came, so seldom is enough and takes little from what is measured.
WATCH_SECONDS: Final = 1.0
# Rows that another insert brought while a poll was under way are read by the next one.
OVERLAP_MS: Final = 2_000
HISTORY: Final = 250
# A recording of its own: enough days for a back-test to say something, each long enough to trade.
DAYS: Final = 30
DAY_SECONDS: Final = 2
# Days of two seconds are days apart for the partitions as well: a pause keeps them within the days
# that the job can still judge anew, even on a busy machine.
DAY_PAUSE_SECONDS: Final = 0.25


class RiskDemoError(FatalError):
    """The demo did not see every event come out, or what came out does not add up."""


@dataclass(frozen=True, slots=True)
class Market:
    """What to send: a recording, then so many seconds of a seeded market.

    `recorded` is what `recorded_slices` read. Without any a recording of `DAYS` days of the same
    desk is written and read first. The seeded market begins on the day after the recording.
    """

    seconds: int = 60
    seed: int = 1
    instruments: int = 20
    accounts: int = 8
    recorded: tuple[MarketSlice, ...] = ()


@dataclass(slots=True)
class RiskDemoResult:
    """What came out; latencies in milliseconds of the wall clock, money in the base currency.

    `tick_latency_ms`: hand-over of a tick or quote to the publisher until a mark row that includes
    it was inserted. `fill_latency_ms`: Kafka timestamp of a fill until its row was inserted.
    `freshness_ms`: age of the newest risk figure at each look while events were sent.
    """

    published: dict[str, int]
    recorded_ticks: int
    dead_letters: int
    bars: dict[str, int]
    marks: int
    fills: int
    repeated_fills: int
    positions: int
    positions_unlike_fills: int
    exposure: dict[str, float]
    var: dict[str, dict[str, float]]
    stress: dict[str, float]
    limits: dict[str, int]
    limit_alerts: int
    evaluations_seen: int
    tick_latency_ms: dict[str, float | None]
    fill_latency_ms: dict[str, float | None]
    freshness_ms: dict[str, float | None]
    events_per_second: float
    recorded_events_per_second: float
    seconds: float
    job_id: str
    limit_rows: list[dict[str, Any]] = field(default_factory=list)
    position_rows: list[dict[str, Any]] = field(default_factory=list)


class RowWatch(threading.Thread):
    """Look at ClickHouse once a second: when each mark row came, how old risk figures are.

    Rows of the same key replace each other when ClickHouse merges, so they are noted as they come.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="row-watch", daemon=True)
        self._client = ClickHouseClient(settings.clickhouse)
        self._ended = threading.Event()
        self._since_ms = 0
        self.sending = threading.Event()
        self.inserted_ms: dict[str, dict[int, int]] = {}
        self.ages_ms: list[int] = []
        self.evaluations: set[int] = set()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._ended.wait(WATCH_SECONDS):
            try:
                self._look()
            except ClickHouseUnavailable:
                # A busy server misses a look; the next one reads the same rows.
                continue

    def stop(self) -> None:
        """Look once more and end the thread."""
        self._ended.set()
        self.join(timeout=30)
        self._look()

    def _look(self) -> None:
        rows = self._client.rows(
            "SELECT instrument_id, revision, toUnixTimestamp64Milli(inserted_at) AS at "
            "FROM risk_marks_raw WHERE toUnixTimestamp64Milli(inserted_at) > {since:Int64}",
            {"since": self._since_ms - OVERLAP_MS},
        )
        for row in rows:
            seen = self.inserted_ms.setdefault(row["instrument_id"], {})
            revision, at = int(row["revision"]), int(row["at"])
            seen[revision] = min(at, seen.get(revision, at))
            self._since_ms = max(self._since_ms, at)
        newest = int(
            self._client.rows("SELECT max(evaluated_at_ms) AS at FROM risk_measures_raw")[0]["at"]
        )
        if newest:
            self.evaluations.add(newest)
            if self.sending.is_set():
                self.ages_ms.append(time.time_ns() // 1_000_000 - newest)


def run_risk_demo(
    settings: Settings,
    market: Market,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> RiskDemoResult:
    """Submit the job, send the market, wait until everything came out, and count.

    Args:
        settings: with the addresses of running parts.
        market: what to send.
        say: told what begins.
        progress: told (events out, events sent so far).

    Raises:
        RiskDemoError: events are missing and nothing new comes out; the message says what the job
            says. Also when positions differ from the fills of the blotter.
    """
    say("submitting the job")
    job_id = submit_job("market_risk", settings)
    outlet = _Outlet(settings, job_id, progress)
    sender = _Sender(settings)
    simulator, recording = _prepared(market, settings.home / "recorded", say)
    say("publishing instruments, limits, scenarios and FX rates")
    limits = sender.references(simulator.reference(HISTORY))
    watch = RowWatch(settings)
    watch.start()
    began = time.monotonic()
    try:
        say("sending the recording as fast as the job takes it")
        sending = time.monotonic()
        recorded = sender.recorded(recording)
        outlet.wait_for(sender.published)
        recorded_seconds = time.monotonic() - sending
        say(f"sending {market.seconds} s of a simulated market")
        started = time.monotonic()
        watch.sending.set()
        for batch in market_slices(simulator, market.seconds):
            sender.simulated(batch, started)
        sender.flush()
        sent_seconds = time.monotonic() - started
        watch.sending.clear()
        say("waiting until everything came out")
        outlet.wait_for(sender.published)
        outlet.wait_settled(limits)
    finally:
        sender.close()
        watch.stop()
    result = outlet.result(sender, watch)
    result.recorded_ticks = recorded
    simulated = sum(sender.published[name] for name in STREAM_TOPICS) - recorded
    result.events_per_second = round(simulated / max(sent_seconds, 0.001), 1)
    result.recorded_events_per_second = round(recorded / max(recorded_seconds, 0.001), 1)
    result.seconds = round(time.monotonic() - began, 3)
    if result.positions_unlike_fills:
        msg = f"comparing positions with fills: {result.positions_unlike_fills} differ"
        raise RiskDemoError(msg)
    return result


def _prepared(
    market: Market, folder: Path, say: Callable[[str], None]
) -> tuple[MarketSimulator, Sequence[MarketSlice]]:
    desk = DeskConfig(instruments=market.instruments, accounts=market.accounts)
    if market.recorded:
        day = last_time_ms(market.recorded) // DAY_MS + 1
        # Fills of an earlier demo's recording must not be taken for these ones.
        desk = replace(desk, start_ms=day * DAY_MS, prefix=f"d{day}-")
        return MarketSimulator(market.seed, desk), market.recorded
    say(f"recording {DAYS} days of the desk in {folder}")
    simulator = MarketSimulator(market.seed, desk)
    files = write_recording(simulator, folder, DAYS, DAY_SECONDS)
    return simulator, list(recorded_slices(files))


class _Sender:
    """Publishes, and notes when the k-th tick or quote of an instrument was handed over."""

    def __init__(self, settings: Settings) -> None:
        self._publisher = KafkaPublisher(librdkafka_config(settings.kafka))
        self._feed = MarketFeed(settings, self._publisher)
        self.published = dict.fromkeys(CONTRACTS, 0)
        self.handed_over_ms: dict[str, list[int]] = {}
        self.earlier: dict[str, int] = {}

    def references(self, records: Mapping[str, list[dict[str, Any]]]) -> int:
        for topic, rows in records.items():
            self.published[topic] += self._feed.publish_records(topic, rows)
        self._feed.flush()
        return len(records["limits"])

    def recorded(self, slices: Sequence[MarketSlice]) -> int:
        count, day = 0, -1
        for one in slices:
            ended, day = day, last_time_ms([one]) // DAY_MS
            if ended not in (-1, day):
                self._feed.flush()
                time.sleep(DAY_PAUSE_SECONDS)
            for topic, columns in one.columns.items():
                sent = self._feed.publish(topic, columns)
                self.published[topic] += sent
                count += sent
                if topic != "fills":
                    for name in _texts(columns, "instrument_id"):
                        self.earlier[name] = self.earlier.get(name, 0) + 1
        self._feed.flush()
        return count

    def simulated(self, batch: MarketSlice, started: float) -> None:
        wait = started + batch.due_seconds - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        now = time.time_ns() // 1_000_000
        for topic, columns in batch.columns.items():
            self.published[topic] += self._feed.publish(topic, columns)
            if topic != "fills":
                for name in _texts(columns, "instrument_id"):
                    self.handed_over_ms.setdefault(name, []).append(now)

    def flush(self) -> None:
        self._feed.flush()

    def close(self) -> None:
        self._publisher.close()


def row_latencies(
    handed_over_ms: Mapping[str, Sequence[int]],
    earlier: Mapping[str, int],
    inserted_ms: Mapping[str, Mapping[int, int]],
) -> NDArray[np.int64]:
    """Return how many milliseconds each tick and quote waited until a mark row included it.

    A mark row carries how many ticks and quotes its instrument had seen: the first row that had
    seen k of them includes the k-th. Events that no row includes are left out.

    Args:
        handed_over_ms: by instrument, when each event was handed over, in order.
        earlier: by instrument, how many events came before those.
        inserted_ms: by instrument and number of events seen, when the row was inserted.
    """
    found = []
    for name, handed_over in handed_over_ms.items():
        rows = sorted(inserted_ms.get(name, {}).items())
        if not rows:
            continue
        revisions = np.array([revision for revision, _ in rows])
        # A row inserted earlier that had seen more shows the event as well.
        times = np.minimum.accumulate(np.array([at for _, at in rows])[::-1])[::-1]
        number = earlier.get(name, 0) + 1 + np.arange(len(handed_over))
        place = np.searchsorted(revisions, number)
        shown = place < len(revisions)
        found.append(times[place[shown]] - np.array(handed_over)[shown])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _texts(columns: Columns, name: str) -> list[str]:
    column = columns[name]
    return [str(text) for text in column.to_list()] if isinstance(column, StringColumn) else []


class _Outlet:
    """Counts what came out, in ClickHouse and on the topics of alerts and dead letters."""

    def __init__(
        self, settings: Settings, job_id: str, progress: Callable[[int, int], None]
    ) -> None:
        self._settings = settings
        self._job_id = job_id
        self._progress = progress
        self._client = ClickHouseClient(settings.clickhouse)

    def wait_for(self, published: Mapping[str, int]) -> None:
        """Wait until each tick, quote and fill is part of a row, or a dead letter."""
        sent = sum(published[name] for name in STREAM_TOPICS)
        self._wait(self._out, sent, "events to come out")

    def wait_settled(self, limits: int) -> None:
        """Wait until limits are measured and positions say what the blotter says."""
        self._wait(lambda: self._one("SELECT count() FROM risk_limits"), limits, "limits")
        self._wait(lambda: -self._unlike_fills(), 0, "positions to equal their fills")

    def result(self, sender: _Sender, watch: RowWatch) -> RiskDemoResult:
        rows = self._client.rows
        base = self._settings.market_risk
        names = {f"{ms // 1000} s": ms for ms in base.bar_intervals_ms}
        bars = {
            int(row["ms"]): int(row["n"])
            for row in rows("SELECT interval_ms AS ms, count() AS n FROM risk_bars GROUP BY ms")
        }
        fills = rows(
            "SELECT quantilesExact(0.5, 0.95, 0.99, 1)"
            "(toUnixTimestamp64Milli(inserted_at) - published_at_ms) AS q, "
            "countIf(outcome = 'applied') AS applied, countIf(outcome = 'repeated') AS repeated "
            "FROM risk_fills_raw"
        )[0]
        exposure = rows(
            "SELECT sum(gross) AS gross, sum(net) AS net, sum(pnl) AS pnl, sum(margin) AS margin, "
            "sum(positions) AS positions, sum(unpriced) AS unpriced "
            "FROM risk_measures_now WHERE scope = 'firm'"
        )[0]
        levels = rows(
            "SELECT level, argMax(value_at_risk, evaluated_at_ms) AS var, "
            "argMax(expected_shortfall, evaluated_at_ms) AS es "
            "FROM risk_var WHERE scope = 'firm' GROUP BY level ORDER BY level"
        )
        stress = rows(
            "SELECT scenario_id, sum(pnl) AS pnl FROM risk_stress WHERE scope = 'firm' "
            "GROUP BY scenario_id ORDER BY scenario_id"
        )
        waits = row_latencies(sender.handed_over_ms, sender.earlier, watch.inserted_ms)
        states = rows("SELECT toString(status) AS s, count() AS n FROM risk_limits GROUP BY s")
        return RiskDemoResult(
            published={name: count for name, count in sender.published.items() if count},
            recorded_ticks=0,
            dead_letters=self._dead_letters(),
            bars={name: bars.get(ms, 0) for name, ms in names.items()},
            marks=self._one("SELECT count() FROM risk_marks"),
            fills=int(fills["applied"]),
            repeated_fills=int(fills["repeated"]),
            positions=self._one("SELECT count() FROM risk_positions"),
            positions_unlike_fills=self._unlike_fills(),
            exposure={name: round(float(value), 2) for name, value in exposure.items()},
            var={
                f"{float(row['level']):g}": {
                    "var": round(float(row["var"]), 2),
                    "es": round(float(row["es"]), 2),
                }
                for row in levels
            },
            stress={row["scenario_id"]: round(float(row["pnl"]), 2) for row in stress},
            limits={row["s"]: int(row["n"]) for row in states},
            limit_alerts=self._records("limit_alerts"),
            evaluations_seen=len(watch.evaluations),
            tick_latency_ms=_percentiles(_quantiles(waits)),
            fill_latency_ms=_percentiles(fills["q"]),
            freshness_ms=_percentiles(_quantiles(np.array(watch.ages_ms))),
            events_per_second=0.0,
            recorded_events_per_second=0.0,
            seconds=0.0,
            job_id=self._job_id,
            limit_rows=rows(
                "SELECT limit_id, toString(status) AS status, value, warning, breach "
                "FROM risk_limits ORDER BY value / breach DESC LIMIT 6"
            ),
            position_rows=rows(
                "SELECT account_id, instrument_id, quantity, mark, value, "
                "realised + unrealised - fees AS pnl FROM risk_positions "
                "ORDER BY abs(value) DESC LIMIT 6"
            ),
        )

    def _out(self) -> int:
        seen = self._one("SELECT sum(revision) FROM risk_marks")
        return seen + self._one("SELECT count() FROM risk_fills_raw FINAL") + self._dead_letters()

    def _unlike_fills(self) -> int:
        return self._one(
            "SELECT countIf(abs(have - want) > 1e-9) FROM ("
            "SELECT sum(held) AS have, sum(filled) AS want FROM ("
            "SELECT firm_id, desk_id, account_id, instrument_id, quantity AS held, 0. AS filled "
            "FROM risk_positions UNION ALL "
            "SELECT firm_id, desk_id, account_id, instrument_id, 0., quantity FROM risk_fills) "
            "GROUP BY firm_id, desk_id, account_id, instrument_id)"
        )

    def _dead_letters(self) -> int:
        return self._records("market_dead_letters")

    def _records(self, topic: str) -> int:
        name = self._settings.kafka.topics.name(topic)
        return sum(end_offsets(self._settings.kafka, name).values())

    def _one(self, query: str) -> int:
        return int(next(iter(self._client.rows(query)[0].values())))

    def _wait(self, count: Callable[[], int], goal: int, what: str) -> None:
        seen, changed = -1, time.monotonic()
        while True:
            out = count()
            if out != seen:
                seen, changed = out, time.monotonic()
            if goal > 0:
                self._progress(out, goal)
            if out >= goal:
                return
            if time.monotonic() - changed > STALL_SECONDS:
                raise RiskDemoError(self._stuck(what, goal, out))
            time.sleep(POLL_SECONDS)

    def _stuck(self, what: str, goal: int, out: int) -> str:
        message = (
            f"waiting for {what}: expected {goal:,}, was {out:,}, no change for {STALL_SECONDS} s"
        )
        if self._settings.flink.rest_url is None:
            return message
        cluster = FlinkCluster(self._settings.flink.rest_url)
        state = cluster.job(self._job_id)["state"]
        causes = cluster.exceptions(self._job_id)
        # The last cause of the newest failure is what went wrong; the rest is Flink's own calls.
        why = causes[0].split("Caused by: ")[-1][:3000] if causes else ""
        return f"{message}; the job is {state}" + (f": {why}" if why else "")


def _quantiles(values: NDArray[np.int64]) -> list[float]:
    return np.quantile(values, [0.5, 0.95, 0.99, 1.0]).tolist() if len(values) else []


def _percentiles(values: list[float]) -> dict[str, float | None]:
    found: list[float | None] = [round(float(value), 3) for value in values]
    return dict(zip(("p50", "p95", "p99", "max"), found or [None] * 4, strict=True))
