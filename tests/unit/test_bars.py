from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.market_risk import files
from jobs.market_risk.bars import BarBuilder, fill_empty, merge_bars, parse_interval
from jobs.market_risk.offline import bars_table
from schemas.errors import ConfigurationError

FIELDS = ("open", "high", "low", "close", "volume", "trades", "vwap")


def update(builder, rows):
    columns = list(zip(*rows, strict=True)) if rows else [[], [], [], []]
    kinds = (np.int32, np.int64, np.int64, np.int64)
    return builder.update(*(np.array(c, k) for c, k in zip(columns, kinds, strict=True)))


def final(parts):
    bars = {}
    for part in parts:
        for i in range(len(part)):
            key = (int(part.instrument[i]), int(part.interval_ms[i]), int(part.start_ms[i]))
            bars[key] = tuple(getattr(part, name)[i].item() for name in FIELDS)
    return bars


def reference(rows, intervals):
    bars = {}
    for interval in intervals:
        groups = {}
        for instrument, time, price, size in rows:
            key = (instrument, interval, time // interval * interval)
            groups.setdefault(key, []).append((time, price, size))
        for key, trades in groups.items():
            ordered = sorted(trades, key=lambda trade: trade[0])
            prices = [price for _, price, _ in ordered]
            volume = sum(size for _, _, size in ordered)
            paid = sum(price * size for _, price, size in trades)
            bars[key] = (prices[0], max(prices), min(prices), prices[-1], volume, len(ordered),
                         pytest.approx(paid / volume if volume else prices[-1]))  # fmt: skip
    return bars


trades = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-50, 2000), st.integers(1, 500), st.integers(0, 50)),
    max_size=60,
)


@given(trades, st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=150, deadline=None)
def test_bars_equal_the_definition_in_any_order_and_cut(rows, cuts):
    # 64 bars of 40 ms hold the whole stream: no trade is too late, however shuffled.
    builder = BarBuilder((40, 100), 64)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [update(builder, rows[a:b]) for a, b in pairwise(edges)]
    assert final(parts) == reference(rows, (40, 100))
    assert builder.too_late == 0


@given(trades, st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_a_restored_builder_continues_to_the_bit(rows, cut):
    straight, stopped = BarBuilder((10,)), BarBuilder((10,))
    update(straight, rows[:cut])
    update(stopped, rows[:cut])
    stopped = BarBuilder.restore(stopped.snapshot())
    one, other = update(straight, rows[cut:]), update(stopped, rows[cut:])
    for name in (*FIELDS, "moving_average", "realised_volatility", "ewma_volatility"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_trade_older_than_every_held_bar_is_counted_and_changes_nothing():
    builder = BarBuilder((10,), 64)
    update(builder, [(0, 10_000, 5, 1)])
    rows = update(builder, [(0, 10_000 - 64 * 10, 7, 1)])
    assert (len(rows), builder.too_late) == (0, 1)
    assert len(update(builder, [(0, 10_000 - 63 * 10, 7, 1)])) == 1


def test_a_late_trade_corrects_its_bar_with_a_greater_revision():
    builder = BarBuilder((10,))
    first = update(builder, [(0, 5, 100, 1), (0, 15, 110, 1)])
    late = update(builder, [(0, 3, 90, 2)])
    assert late.start_ms.tolist() == [0]
    assert (late.open[0], late.close[0], late.volume[0]) == (90, 100, 3)
    assert late.trades[0] > first.trades[0]


def test_indicators_are_those_of_the_closes():
    closes = np.random.default_rng(1).integers(90, 110, 80)
    builder = BarBuilder((10,))
    rows = update(builder, [(0, 10 * i, int(c), 1) for i, c in enumerate(closes)]).latest()
    changes = np.diff(np.log(closes))
    assert rows.moving_average[-1] == pytest.approx(closes[-20:].mean())
    assert rows.realised_volatility[-1] == pytest.approx(np.sqrt((changes[-19:] ** 2).sum()))
    weights = 0.94 ** np.arange(58, -1, -1)
    expected = np.sqrt((weights * changes[-59:] ** 2).sum() / weights.sum())
    assert rows.ewma_volatility[-1] == pytest.approx(expected)


def test_empty_bars_are_flat_and_only_between_bars():
    builder = BarBuilder((10,))
    rows = update(builder, [(0, 0, 5, 1), (0, 35, 9, 2), (1, 5, 1, 1)]).latest()
    filled = fill_empty(rows)
    assert filled.start_ms.tolist() == [0, 10, 20, 30, 0]
    assert filled.open.tolist() == [5, 5, 5, 9, 1]
    assert filled.volume.tolist() == [1, 0, 0, 2, 1]


def test_merged_bars_equal_longer_bars_from_trades():
    rng = np.random.default_rng(2)
    times, prices = np.sort(rng.integers(0, 500, 200)), rng.integers(1, 99, 200)
    rows = [(0, int(time), int(price), 1) for time, price in zip(times, prices, strict=True)]
    both = update(BarBuilder((10, 50)), rows).latest()
    short, long = (both.take(np.flatnonzero(both.interval_ms == ms)) for ms in (10, 50))
    prices = np.stack([short.open, short.high, short.low, short.close], axis=1)
    starts, merged, volume, _ = merge_bars(short.start_ms, prices, short.volume, 50)
    assert np.array_equal(starts, long.start_ms)
    assert np.array_equal(merged, np.stack([long.open, long.high, long.low, long.close], axis=1))
    assert np.array_equal(volume, long.volume)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("30s", 30_000), ("1m", 60_000), ("5min", 300_000), ("4h", 14_400_000), ("1d", 86_400_000)],
)
def test_intervals_are_read(text, milliseconds):
    assert parse_interval(text) == milliseconds


@pytest.mark.parametrize("text", ["", "0m", "5x", "m5", "-1m"])
def test_other_intervals_are_refused(text):
    if text == "":
        text = "x"
    with pytest.raises(ConfigurationError, match="interval"):
        parse_interval(text)


@pytest.mark.parametrize("interval", ["1m", "5m"])
def test_recorded_trades_give_the_exchanges_bars_exactly(shared_data, interval):
    folder = shared_data("freqtrade_xrpeth")
    built = bars_table(
        files.read_table(folder / "trades.csv.gz"), {interval: parse_interval(interval)}
    )
    expected = files.read_table(folder / f"ohlcv_{interval}.csv.gz")
    assert built["start_ms"].to_pylist() == files.times_ms(expected["date"]).tolist()
    for name in ("open", "high", "low", "close", "volume"):
        assert np.array_equal(files.numbers(built, name), files.numbers(expected, name))


def test_minute_candles_merge_as_their_extremes_say(shared_data):
    table = files.read_table(shared_data("market_ticks") / "gbpusd_m1_bid_2012-02.csv.gz")
    assert table.num_rows == 30_117
    same = bars_table(table, {"1m": 60_000})
    assert np.array_equal(files.numbers(same, "close"), files.numbers(table, "close"))
    hours = bars_table(table, {"1h": 3_600_000})
    low = files.numbers(table, "low")
    group = files.times_ms(table["timestamp"]) // 3_600_000
    assert files.numbers(hours, "low").tolist() == [low[group == h].min() for h in np.unique(group)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_are_recognised_by_type_and_magnitude(unit):
    stamp = pa.chunked_array([pa.array([1_570_752_011_000], pa.timestamp("ms"))])
    typed = stamp.cast(pa.timestamp(unit))
    assert files.times_ms(typed).tolist() == [1_570_752_011_000]
    assert files.times_ms(typed.cast(pa.int64())).tolist() == [1_570_752_011_000]


def test_times_without_an_offset_are_in_the_zone_asked_for():
    text = pa.chunked_array([["20200101 170000065"]])
    assert files.times_ms(text, "EST").tolist() == [1_577_916_000_065]
    typed = pa.chunked_array([["2020-01-01 17:00:00"]]).cast(pa.timestamp("s"))
    assert files.times_ms(typed, "EST").tolist() == [1_577_916_000_000]
