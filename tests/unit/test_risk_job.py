"""Both stages of the market risk job, driven by hand: no Flink, no Kafka, no ClickHouse."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

from connectors.frames import FrameBatch, write_frame
from connectors.producers.publisher import RecordLog
from connectors.settings import Settings, load_settings
from jobs.market_risk.feed import MarketFeed
from jobs.market_risk.instrument_stage import InstrumentStage
from jobs.market_risk.parts import REFERENCE_TOPICS, MarketParts
from jobs.market_risk.portfolio_stage import PortfolioStage
from jobs.market_risk.simulator import DeskConfig, MarketSimulator
from jobs.market_risk.tables import LAYOUTS, Table
from schemas.avro import RecordDecoder
from schemas.columns import NumberColumn, StringColumn
from schemas.contract import contract
from schemas.registry import open_registry


class Counts:
    def __init__(self):
        self.values = {}

    def count(self, name, by=1):
        self.values[name] = self.values.get(name, 0) + by

    def observe_ms(self, name, milliseconds, times=1):
        pass

    def gauge(self, name, value):
        self.values[name] = value


class State(dict):
    def put(self, key, value):
        self[key] = value

    def remove(self, key):
        self.pop(key, None)


def packets(data):
    at = 0
    while at < len(data):
        route, _, _, shard, length = struct.unpack_from("<BBHII", data, at)
        yield route, shard, data[at + 12 : at + 12 + length]
        at += 12 + length


class Job:
    """Two shards of two stages, wired as the graph wires them."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.states = {(stage, shard): State() for stage in range(2) for shard in range(2)}
        self.kafka, self.rows = [], {table: 0 for table in Table}
        self.last = {}
        self.start()

    def start(self):
        parts = MarketParts(self.settings)
        self.metrics = Counts()
        self.stages = [InstrumentStage(parts), PortfolioStage(parts)]
        for stage in self.stages:
            stage.open(self.metrics)

    def feed(self, frames):
        onward = {0: b"", 1: b""}
        for shard in range(2):
            batch = b"".join(frame for target, frame in frames if target in (shard, None))
            if batch:
                onward = self._take(
                    self.stages[0].process(shard, batch, self.states[0, shard]), onward
                )
        for shard in range(2):
            if onward[shard]:
                self._take(self.stages[1].process(shard, onward[shard], self.states[1, shard]), {})

    def _take(self, data, onward):
        for route, shard, payload in packets(data):
            if route == 0:
                onward[shard] += payload
            elif route == 1:
                self.kafka.append(FrameBatch.parse(payload))
            else:
                table, count, length = struct.unpack_from("<III", payload, 4)
                self.rows[Table(table)] += count
                self.last[Table(table)] = (count, payload[16 : 16 + length])
        return onward

    def engine(self, shard):
        return self.stages[1]._shards[shard][0].engine

    def records(self, topic, name):
        decoder = RecordDecoder(open_registry(self.settings.schemas), contract(name))
        wanted = self.settings.kafka.topics.name(topic)
        return [
            decoder.decode(batch.value.bytes_at(row))
            for batch in self.kafka
            for row in range(len(batch))
            if batch.topic.text_at(row) == wanted
        ]


@pytest.fixture
def settings(tmp_path):
    return load_settings(
        None,
        {},
        [f"schemas.registry=file:{tmp_path}", "flink.shards=2", "flink.parallelism=1"],
    )


def stream(settings, batches=15, seed=5, overnight=False):
    """The simulator's records as frames: first the reference, then one list for each batch."""
    simulator = MarketSimulator(seed, DeskConfig(instruments=12, fill_share=0.5))
    log = RecordLog()
    feed = MarketFeed(settings, log)
    control = [settings.kafka.topics.name(topic) for topic in REFERENCE_TOPICS]
    parts, offset = [], 0
    for topic, records in simulator.reference(60).items():
        feed.publish_records(topic, records)
    steps = [dict(), *(None for _ in range(batches))]
    source = simulator.batches()
    for step in steps:
        if step is None:
            batch = next(source)
            if overnight:
                simulator.next_day()
            for topic in ("quotes", "ticks", "fills"):
                feed.publish(topic, getattr(batch, topic))
        frames = []
        for topic, key, value, time_ms in log.records:
            target = None if topic in control else sum(key) % 2
            frames.append(
                (
                    target,
                    write_frame(topic, key, value, partition=0, offset=offset,
                                timestamp_ms=time_ms, ingested_at_ms=time_ms + 3,
                                control=topic in control),
                )
            )  # fmt: skip
            offset += 1
        log.records.clear()
        parts.append(frames)
    return parts


def view(job):
    """What the shards of the last stage hold, comparable between runs."""
    found = {}
    for shard in job.stages[1]._shards:
        engine = job.engine(shard)
        rows = engine.book.rows()
        for key, place in engine.keys.items():
            name = (engine.accounts.texts[key[2]], engine.instruments.texts[key[3]])
            found[name] = tuple(int(getattr(rows, field)[place]) for field in rows.__slots__)
    return found


def test_the_job_measures_positions_that_agree_with_the_fills(settings):
    job = Job(settings)
    for frames in stream(settings):
        job.feed(frames)
    assert job.metrics.values.get("dead_letters", 0) == 0
    assert {table for table, count in job.rows.items() if count} == set(Table) - {Table.FORECASTS}
    shard = next(iter(job.stages[1]._shards))
    shard = max(job.stages[1]._shards, key=lambda one: len(job.engine(one).keys))
    engine = job.engine(shard)
    found = engine.evaluate()
    money, groups = found.positions, found.groups
    assert money.priced.all()
    firm = found.grouping.index["firm", "firm", "firm"]
    assert groups.net[firm] == money.value.sum()
    assert groups.gross[firm] == np.abs(money.value).sum()
    assert found.component_var.sum() == pytest.approx(groups.var[-1, firm])
    assert groups.margin[firm] >= groups.var[-1, firm]
    assert job.rows[Table.FILLS] > len(engine.keys) > 20


def test_another_cut_of_the_stream_gives_the_same_positions_and_bars(settings):
    parts = stream(settings)
    one, other = Job(settings), Job(settings)
    for frames in parts:
        one.feed(frames)
    frames = [frame for part in parts for frame in part]
    for start in range(0, len(frames), 333):
        other.feed(frames[start : start + 333])
    assert view(one) == view(other)
    for shard in range(2):
        first, second = (job.stages[0]._shards[shard][0] for job in (one, other))
        assert first.snapshot() == second.snapshot()


def test_every_day_of_a_batch_is_judged_however_the_stream_is_cut(settings):
    parts = stream(settings, batches=12, overnight=True)
    judged = []
    for cut in (1, 4, len(parts)):
        job = Job(settings)
        job.feed(parts[0])
        for start in range(1, len(parts), cut):
            job.feed([frame for part in parts[start : start + cut] for frame in part])
        days = [job.stages[1]._shards[shard][0].daily for shard in job.stages[1]._shards]
        judged.append((job.rows[Table.FORECASTS], [one.day for one in days]))
    methods, levels = settings.market_risk.var_methods, settings.market_risk.levels
    # The first day has no forecast, the last has not ended.
    assert judged[0][0] >= 9 * len(methods) * len(levels)
    assert judged[0] == judged[1] == judged[2]


def test_a_day_ends_with_its_own_prices_however_the_stream_is_cut(settings):
    """All through one shard, so that the order of arrival is that of the stream in every run."""
    parts = [
        [(None if target is None else 0, frame) for target, frame in part]
        for part in stream(settings, batches=8, overnight=True)
    ]
    ended = []
    for cut in (1, 3, len(parts)):
        job = Job(settings)
        job.feed(parts[0])
        found = {shard: [] for shard in job.stages[1]._shards}
        for shard, days in found.items():
            daily = job.stages[1]._shards[shard][0].daily
            roll = daily.roll
            daily.roll = lambda *args, days=days, roll=roll: days.append(args[1]) or roll(*args)
        for start in range(1, len(parts), cut):
            job.feed([frame for part in parts[start : start + cut] for frame in part])
        ended.append(found)
    profits = [one["firm"] for days in ended[0].values() for one in days if one]
    assert len(set(profits)) >= 7
    assert ended[0] == ended[1] == ended[2]


def test_a_restarted_job_continues_to_the_bit(settings):
    parts = stream(settings)
    straight, stopped = Job(settings), Job(settings)
    for number, frames in enumerate(parts):
        straight.feed(frames)
        if number == 7:
            stopped.start()  # forgets everything but what Flink holds
        stopped.feed(frames)
    for stage in range(2):
        for shard in straight.stages[stage]._shards:
            first, second = (job.stages[stage]._shards[shard][0] for job in (straight, stopped))
            assert first.snapshot() == second.snapshot()


def test_a_breached_limit_raises_one_alert_in_the_common_envelope(settings):
    job = Job(settings)
    for frames in stream(settings):
        job.feed(frames)
    alerts = job.records("limit_alerts", "alert")
    limits = [alert for alert in alerts if "limit_id" in alert["attributes"]]
    assert limits
    assert all(alert["kind"] == "limit" and alert["reasons"] for alert in limits)
    assert len({alert["alert_id"] for alert in alerts}) == len(alerts)
    breached = [alert for alert in limits if alert["decision"] == "breach"]
    assert all(alert["score"] >= alert["threshold"] for alert in breached)
    assert all(alert["severity"] == "critical" for alert in breached)


def test_a_market_that_jumps_spikes_or_crosses_raises_alerts_of_the_market(settings):
    job = Job(settings)
    parts = stream(settings)
    log = RecordLog()
    feed = MarketFeed(settings, log)
    whole = np.ones(1, np.bool_)

    def number(value, kind=np.int64):
        return NumberColumn(np.array([value], kind), whole)

    name = "EQ0000"
    common = {
        "instrument_id": StringColumn.from_texts([name]),
        "event_time_ms": number(1_577_836_810_000),
        "price_scale": number(2, np.int32),
        "quantity_scale": number(0, np.int32),
    }
    sizes = {"bid_size": number(1), "ask_size": number(1)}
    feed.publish("quotes", common | sizes | {"bid": number(9_010), "ask": number(9_000)})
    trade = {"trade_id": StringColumn.from_texts(["t"]), "aggressor": number(1, np.int32)}
    feed.publish("ticks", common | trade | {"price": number(999_900), "size": number(10_000_000)})
    parts.append(
        [
            (0, write_frame(topic, key, value, offset=50_000 + row, timestamp_ms=time_ms))
            for row, (topic, key, value, time_ms) in enumerate(log.records)
        ]
    )
    # All of an instrument's events are in one shard, as the hash of its key puts them.
    for frames in parts:
        job.feed([(None if target is None else 0, frame) for target, frame in frames])
    alerts = [one for one in job.records("limit_alerts", "alert") if one["entity_id"] == name]
    found = {one["decision"] for one in alerts if one["attributes"].get("cause") == "market"}
    assert found >= {"price_jump", "volume_spike", "crossed_market"}
    assert {one["reasons"][0]["code"] for one in alerts} == found


def test_a_bad_record_becomes_a_dead_letter_and_its_neighbours_go_on(settings):
    job = Job(settings)
    parts = stream(settings, batches=2)
    topic = settings.kafka.topics.name("fills")
    parts[1].insert(5, (0, write_frame(topic, b"account-1", b"\x00nonsense", offset=9_999)))
    parts[1].append((0, write_frame("unknown-topic", b"k", b"v", offset=10_000)))
    for frames in parts:
        job.feed(frames)
    letters = job.records("market_dead_letters", "dead_letter")
    assert [letter["offset"] for letter in letters] == [9_999, 10_000]
    assert letters[1]["reason"] == "unknown_topic"
    assert view(job)


def test_layouts_cover_the_columns_of_the_tables():
    from connectors.migrations import load_migrations

    text = "\n".join(
        statement for migration in load_migrations() for statement in migration.statements
    )
    for name, layout in LAYOUTS.values():
        body = text.split(f"EXISTS {name}")[1].split("ENGINE")[0]
        declared = {line.split()[0] for line in body.splitlines() if line.startswith("    ")}
        for change in text.split(f"ALTER TABLE {name}\n")[1:]:
            body = change.split("CREATE ")[0].split("ALTER ")[0]
            declared |= set(re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", body))
        assert set(layout.columns) <= declared, name
