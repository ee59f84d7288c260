"""Both stages of the market risk job, driven by hand: no Flink, no Kafka, no ClickHouse."""

from __future__ import annotations

import re

import numpy as np
import pytest

from connectors.frames import write_frame
from connectors.producers.publisher import RecordLog
from connectors.settings import load_settings
from jobs.market_risk.feed import MarketFeed
from jobs.market_risk.stress import Scenario
from jobs.market_risk.tables import LAYOUTS, Table
from schemas.columns import NumberColumn, StringColumn
from tests.support.market import MarketJob, market_stream, reference_frames


@pytest.fixture
def settings(tmp_path):
    return load_settings(
        None,
        {},
        [f"schemas.registry=file:{tmp_path}", "flink.shards=2", "flink.parallelism=1"],
    )


def view(job):
    """What the shards of the last stage hold, comparable between runs."""
    found = {}
    for shard in job.shards:
        engine = job.engine(shard)
        rows = engine.book.rows()
        for key, place in engine.keys.items():
            name = (engine.accounts.texts[key[2]], engine.instruments.texts[key[3]])
            found[name] = tuple(int(getattr(rows, field)[place]) for field in rows.__slots__)
    return found


def test_the_job_measures_positions_that_agree_with_the_fills(settings):
    job = MarketJob(settings)
    for frames in market_stream(settings):
        job.feed(frames)
    assert job.metrics.counters.get("dead_letters", 0) == 0
    written = {table for table, count in job.counts().items() if count}
    assert written == set(Table) - {Table.FORECASTS, Table.CONTROL}
    shard = max(job.shards, key=lambda one: len(job.engine(one).keys))
    engine = job.engine(shard)
    found = engine.evaluate()
    money, groups = found.positions, found.groups
    assert money.priced.all()
    firm = found.grouping.index["firm", "firm", "firm"]
    assert groups.net[firm] == money.value.sum()
    assert groups.gross[firm] == np.abs(money.value).sum()
    assert found.component_var.sum() == pytest.approx(groups.var[-1, firm])
    assert groups.margin[firm] >= groups.var[-1, firm]
    assert job.counts()[Table.FILLS] > len(engine.keys) > 20


def test_a_bond_is_marked_clean_valued_by_its_pieces_and_moves_by_its_own_shocks(settings):
    job = MarketJob(settings)
    for frames in market_stream(settings):
        job.feed(frames)
    marks = {row["instrument_id"]: row["mid"] for row in job.rows(Table.MARKS)}
    newest = {(row["account_id"], row["instrument_id"]): row for row in job.rows(Table.POSITIONS)}
    held = [row for (_, name), row in newest.items() if name == "BO0006" and row["quantity"]]
    assert held
    assert 90 < marks["BO0006"] < 115
    for row in held:
        # For 100 of nominal, in pieces of 1,000, and 1.12 dollars a euro.
        nominal = 1_000 * row["quantity"]
        assert row["mark"] == pytest.approx(marks["BO0006"])
        assert row["value"] == pytest.approx(nominal * row["mark"] / 100 * 1.12, abs=1e-4)
    (engine,) = (job.engine(shard) for shard in job.shards if job.engine(shard).keys)
    engine.put_scenario(Scenario("bonds", "stress", 0, {"kind:bond": -0.07}))
    found = engine.evaluate()
    firm = found.grouping.index["firm", "firm", "firm"]
    exposure = sum(row["value"] for row in held)
    loss = found.groups.stress[found.stress_ids.index("bonds"), firm]
    assert loss == pytest.approx(-0.07 * exposure, abs=0.01)


def test_another_cut_of_the_stream_gives_the_same_positions_and_bars(settings):
    parts = market_stream(settings)
    one, other = MarketJob(settings), MarketJob(settings)
    for frames in parts:
        one.feed(frames)
    frames = [frame for part in parts for frame in part]
    for start in range(0, len(frames), 333):
        other.feed(frames[start : start + 333])
    assert view(one) == view(other)
    for shard in range(2):
        first, second = (job.stages[0]._shards[shard][0] for job in (one, other))
        assert first.snapshot() == second.snapshot()


def test_a_restarted_job_continues_to_the_bit(settings):
    parts = market_stream(settings)
    straight, stopped = MarketJob(settings), MarketJob(settings)
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
    job = MarketJob(settings)
    tight = {
        "limit_id": "tight", "firm_id": "firm", "scope": "desk", "scope_id": "desk-1",
        "measure": "gross", "warning": 500.0, "breach": 1_000.0,
    }  # fmt: skip
    job.feed(reference_frames(settings, {"limits": [tight]}))
    for frames in market_stream(settings):
        job.feed(frames)
    alerts = job.records("limit_alerts", "alert")
    limits = [alert for alert in alerts if "limit_id" in alert["attributes"]]
    assert limits
    assert all(alert["kind"] == "limit" and alert["reasons"] for alert in limits)
    assert len({alert["alert_id"] for alert in alerts}) == len(alerts)
    breached = [alert for alert in limits if alert["decision"] == "breach"]
    assert [alert["attributes"]["limit_id"] for alert in breached].count("tight") == 1
    assert all(alert["score"] >= alert["threshold"] for alert in breached)
    assert all(alert["severity"] == "critical" for alert in breached)


def test_a_market_that_jumps_spikes_or_crosses_raises_alerts_of_the_market(settings):
    job = MarketJob(settings)
    parts = market_stream(settings)
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


def test_numbers_at_another_scale_are_read_at_their_instruments_own(settings):
    log = RecordLog()
    feed = MarketFeed(settings, log)
    one = np.ones(1, np.bool_)

    def event(time_ms, price_scale, quantity_scale, **values):
        columns = {"instrument_id": StringColumn.from_texts(["BTC"])}
        kinds = {"price_scale": np.int32, "quantity_scale": np.int32, "aggressor": np.int32}
        values |= {"price_scale": price_scale, "quantity_scale": quantity_scale}
        values["event_time_ms"] = 1_577_836_800_000 + time_ms
        for name, value in values.items():
            text = isinstance(value, str)
            kind = kinds.get(name, np.int64)
            columns[name] = (
                StringColumn.from_texts([value])
                if text
                else NumberColumn(np.array([value], kind), one)
            )
        return columns

    trade = {"trade_id": "t", "aggressor": 1}
    sizes = {"bid_size": 1, "ask_size": 1}
    names = {"firm_id": "firm", "desk_id": "desk", "account_id": "account"}
    feed.publish("ticks", event(1_000, 2, 3, price=10_050, size=1_500, **trade))
    feed.publish("ticks", event(2_000, 1, 0, price=1_010, size=2, **trade))
    feed.publish("quotes", event(3_000, 3, 8, bid=100_900, ask=101_100, **sizes))
    feed.publish("quotes", event(4_000, 3, 8, bid=100_901, ask=101_100, **sizes))  # too fine
    feed.publish(
        "fills", event(5_000, 2, 1, fill_id="f1", quantity=20, price=10_000, fee=5, **names)
    )
    feed.publish("fills", event(6_000, 0, 0, fill_id="f2", quantity=1, price=100, fee=1, **names))
    feed.publish("fills", event(7_000, 2, 2, fill_id="f3", quantity=1, price=100, fee=1, **names))
    job = MarketJob(settings)
    for row, (topic, key, value, time_ms) in enumerate(log.records):
        job.feed([(0, write_frame(topic, key, value, offset=row, timestamp_ms=time_ms))])
    bar = [row for row in job.rows(Table.BARS) if row["interval_ms"] == 60_000][-1]
    assert (bar["open"], bar["close"], bar["volume"]) == (100.5, 101.0, 3.5)
    assert job.rows(Table.MARKS)[-1]["mid"] == 101.0
    position = job.rows(Table.POSITIONS)[-1]
    assert (position["quantity"], position["mark"]) == (3.0, 101.0)
    assert position["average_price"] == pytest.approx(100.0)
    assert position["fees"] == pytest.approx(0.005 + 1)
    assert [one["reason"] for one in job.records("market_dead_letters", "dead_letter")] == [
        "bad_scale", "bad_scale",
    ]  # fmt: skip


def test_a_position_says_when_its_price_is_old_and_when_it_is_fresh_again(settings):
    market = settings.market_risk.model_copy(update={"stale_ms": 50})
    job = MarketJob(settings.model_copy(update={"market_risk": market}))
    for frames in market_stream(settings):
        job.feed(frames)
    rows = job.rows(Table.POSITIONS)
    # Quotes come every 100 ms of event time, a trade a millisecond after its quote.
    assert {row["stale"] for row in rows} == {False}
    late = market_stream(settings, batches=40, seed=5)[-1]
    only = [frame for frame in late if b"EQ0000" in frame[1]]
    job.feed(only)
    news = job.rows(Table.POSITIONS)[len(rows) :]
    fresh = {row["instrument_id"] for row in news if not row["stale"]}
    stale = {row["instrument_id"] for row in news if row["stale"]}
    assert fresh == {"EQ0000"}
    assert len(stale) > 5
    assert "EQ0000" not in stale
    firm = [row for row in job.rows(Table.MEASURES) if row["scope"] == "firm"][-1]
    assert firm["stale"] == sum(row["stale"] for row in news)
    job.feed(late)
    assert {row["stale"] for row in job.rows(Table.POSITIONS)[-5:]} == {False}


def test_a_bad_record_becomes_a_dead_letter_and_its_neighbours_go_on(settings):
    job = MarketJob(settings)
    parts = market_stream(settings, batches=2)
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
