"""Profit by UTC day is a function of the events alone: not of batches, nor of partitions' order."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.frames import FrameBatch
from connectors.settings import load_settings
from jobs.market_risk.daily import DAY_MS
from jobs.market_risk.engine_state import pack_parts, unpack_parts
from jobs.market_risk.portfolio_shard import PortfolioShard
from jobs.market_risk.reference import Instrument
from jobs.market_risk.simulator import DeskConfig, MarketSimulator
from jobs.market_risk.tables import Table
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.registry import open_registry
from tests.support.market import MarketJob, market_stream

DAYS = 9
ONE_METHOD = ['market_risk.var_methods=["plain"]', "market_risk.levels=[0.95]"]
KINDS = {"ticks": "tick", "quotes": "quote", "fills": "fill"}


class Stand:
    """Settings, reference frames and the stream; too long for a report of Hypothesis."""

    def __init__(self, *parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


@pytest.fixture(scope="module")
def stand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    chosen = load_settings(
        None,
        {},
        [f"schemas.registry=file:{folder}", "flink.shards=2", "flink.parallelism=1"],
    )
    market = chosen.market_risk.model_copy(update={"var_methods": ("plain",), "levels": (0.95,)})
    chosen = chosen.model_copy(update={"market_risk": market})
    parts = market_stream(chosen, batches=DAYS, overnight=True)
    return Stand(chosen, parts[0], [frame for part in parts[1:] for frame in part])


def decoded(chosen, frames):
    """Every event as (topic field, record), in order."""
    registry = open_registry(chosen.schemas)
    decoders = {
        chosen.kafka.topics.name(field): (field, RecordDecoder(registry, contract(name)))
        for field, name in KINDS.items()
    }
    events = []
    for _, frame in frames:
        one = FrameBatch.parse(frame)
        field, decoder = decoders[one.topic.text_at(0)]
        events.append((field, decoder.decode(one.value.bytes_at(0))))
    return events


def profits(events):
    """P&L of the firm by day, from all fills and the last prices up to its end."""
    simulator = MarketSimulator(5, DeskConfig(instruments=12, fill_share=0.5))
    terms: dict[str, Instrument] = {one.instrument_id: one for one in simulator.terms}
    rate = {"USD": Fraction(1), "EUR": Fraction(112, 100)}
    days = sorted({record["event_time_ms"] // DAY_MS for _, record in events})
    worth, seen = {}, set()
    for day in days:
        cash, held, last, mid = Fraction(0), {}, {}, {}
        seen.clear()
        for field, record in events:
            if record["event_time_ms"] >= (day + 1) * DAY_MS:
                continue
            name, time_ms = record["instrument_id"], record["event_time_ms"]
            unit = Fraction(1, 10 ** record["price_scale"])
            if field == "fills":
                if record["fill_id"] in seen:
                    continue
                seen.add(record["fill_id"])
                size = Fraction(record["quantity"], 10 ** record["quantity_scale"])
                fx = rate[terms[name].currency]
                fee = record["fee"] * unit / 10 ** record["quantity_scale"]
                cash -= (size * record["price"] * unit * terms[name].multiplier + fee) * fx
                held[name] = held.get(name, 0) + size
            elif field == "ticks":
                if time_ms >= last.get(name, (0,))[0]:
                    last[name] = (time_ms, record["price"] * unit)
            elif time_ms >= mid.get(name, (0,))[0]:
                bid, ask = record["bid"], record["ask"]
                sound = bid is not None and ask is not None and bid <= ask
                mid[name] = (time_ms, (bid + ask) * unit / 2 if sound else None)
        value = Fraction(0)
        for name, size in held.items():
            price = mid.get(name, (0, None))[1]
            price = last[name][1] if price is None else price
            value += size * price * terms[name].multiplier * rate[terms[name].currency]
        worth[day] = cash + value
    return {day: float(worth[day] - worth[before]) for before, day in pairwise(days)}


def judged(job):
    """The last word on each day."""
    return {
        row["day_ms"] // DAY_MS: (row["pnl"], row["forecast"], row["exception"], row["exceptions"])
        for row in job.rows(Table.FORECASTS)
    }


def run(chosen, reference, frames, cuts):
    job = MarketJob(chosen)
    job.feed(reference)
    bounds = [0, *sorted(set(cuts)), len(frames)]
    for low, high in pairwise(bounds):
        job.feed(frames[low:high])
    return job


@given(share=st.floats(0, 1), seed=st.integers(0, 1_000_000))
@settings(max_examples=12, deadline=None)
def test_profit_by_day_is_exact_however_the_stream_is_cut(stand, share, seed):
    chosen, reference, frames = stand
    source = random.Random(seed)
    cuts = [source.randrange(1, len(frames)) for _ in range(int(share * 40))]
    found = judged(run(chosen, reference, frames, cuts))
    expected = profits(decoded(chosen, frames))
    # The last day has not ended.
    assert sorted(found) == sorted(expected)[:-1]
    for day, (pnl, forecast, exception, _) in found.items():
        assert pnl == pytest.approx(expected[day], abs=0.02)
        assert forecast > 0
        assert exception == (-pnl > forecast)


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=12, deadline=None)
def test_partitions_may_run_days_apart_and_every_day_still_ends_with_its_own_events(stand, seed):
    """Each topic and shard keeps its order; which one runs ahead is drawn anew for each batch."""
    chosen, reference, frames = stand
    source = random.Random(seed)
    lanes = {}
    for (target, frame), (field, _) in zip(frames, decoded(chosen, frames), strict=True):
        lanes.setdefault((field, target), []).append((target, frame))
    waiting = [list(reversed(lane)) for lane in lanes.values()]
    job = MarketJob(chosen)
    job.feed(reference)
    while any(waiting):
        lane = source.choice([one for one in waiting if one])
        job.feed([lane.pop() for _ in range(min(len(lane), source.randrange(1, 400)))])
    straight = judged(run(chosen, reference, frames, []))
    found = judged(job)
    assert {day: one[0] for day, one in found.items()} == {
        day: one[0] for day, one in straight.items()
    }
    for day, (_, forecast, exception, exceptions) in found.items():
        # Positions are numbered as they come, so their sums may differ in the last bit.
        assert forecast == pytest.approx(straight[day][1], rel=1e-9)
        assert (exception, exceptions) == straight[day][2:]


def test_a_restart_between_two_days_changes_nothing(stand):
    chosen, reference, frames = stand
    straight = run(chosen, reference, frames, range(0, len(frames), 500))
    stopped = MarketJob(chosen)
    stopped.feed(reference)
    for start in range(0, len(frames), 500):
        if start in (1_000, 2_500):
            stopped.start()
        stopped.feed(frames[start : start + 500])
    assert judged(stopped) == judged(straight)


def test_a_snapshot_of_before_goes_on_with_the_day_it_was_made_in(stand):
    """One with two parts: no days that can change, and the rates only in the engine."""
    chosen, reference, frames = stand
    straight = run(chosen, reference, frames, range(0, len(frames), 500))
    job = run(chosen, reference, frames[:2_000], range(0, 2_000, 500))
    for shard in job.shards:
        unit, log = job.stages[1]._shards[shard]
        restored = PortfolioShard.restore(
            unit.engine.config, pack_parts(unpack_parts(unit.snapshot())[:2])
        )
        job.stages[1]._shards[shard] = (restored, log)
    before = judged(job)
    for start in range(2_000, len(frames), 500):
        job.feed(frames[start : start + 500])
    expected = judged(straight)
    later = [day for day in judged(job) if day not in before]
    assert len(later) >= 3
    for day in later:
        assert judged(job)[day][0] == expected[day][0]
