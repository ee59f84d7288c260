from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.market_risk import files
from jobs.market_risk.daily import DailyBacktest, DayEnd
from jobs.market_risk.limits import Limit, LimitBook, LimitRecordError, Status
from jobs.market_risk.market import (
    CROSSED,
    NO_PRICE,
    PRICE_JUMP,
    STALE_BEGINS,
    STALE_QUOTE,
    VOLUME_SPIKE,
    MarketState,
    asof_join,
)
from jobs.market_risk.options import OptionTerms, greeks, implied_volatility, option_price, revalue
from jobs.market_risk.scaling import infer_scale, to_scaled
from jobs.market_risk.stress import Scenario, ScenarioError, ScenarioSet, scenario_margin


def read(state, rows):
    """Rows are (is_quote, instrument, time, first, second)."""
    kinds = (np.bool_, np.int32, np.int64, np.int64, np.int64)
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 5
    return state.update(*(np.array(c, k) for c, k in zip(columns, kinds, strict=True)))


def test_recorded_trades_join_the_quotes_that_other_engines_find(shared_data):
    folder = shared_data("market_ticks")
    trades = files.read_table(folder / "btcusdt_trades.parquet")
    quotes = files.read_table(folder / "btcusdt_quotes.parquet")
    trade_ms, quote_ms = (files.times_ms(table["timestamp"]) for table in (trades, quotes))
    joined = asof_join(trade_ms, quote_ms)
    price, bid, ask = (
        files.numbers(trades, "price"), files.numbers(quotes, "bid"), files.numbers(quotes, "ask")
    )  # fmt: skip
    inside = (joined >= 0) & (price >= bid[joined]) & (price <= ask[joined])
    assert (joined < 0).sum() == 30
    # expected.json says 56.4% of all trades, 1,128: what pandas finds after a sort that shuffles
    # the 23 quotes of equal times. In order of arrival it finds these 1,140, as DuckDB and Polars.
    assert inside.sum() == 1_140
    # Online, record by record in order of time, quotes first among equals: the same join.
    scale = infer_scale(np.concatenate([price, bid, ask]))
    order = np.lexsort((np.repeat([1, 0], [len(price), len(bid)]), np.append(trade_ms, quote_ms)))
    events = MarketState().update(
        np.repeat([False, True], [len(price), len(bid)])[order],
        np.zeros(len(order), np.int32),
        np.append(trade_ms, quote_ms)[order],
        np.append(to_scaled(price, scale), to_scaled(bid, scale))[order],
        np.append(np.ones(len(price), np.int64), to_scaled(ask, scale))[order],
    )
    online = np.empty(len(order), np.int64)
    online[order] = events.bid
    expected = np.where(joined >= 0, to_scaled(bid, scale)[joined], NO_PRICE)
    assert np.array_equal(online[: len(price)], expected)


records = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 2),
        # Up to three days, in any order.
        st.integers(0, 300).map(lambda time: time * 1_000_000),
        st.integers(1, 99),
        st.integers(1, 99),
    ),
    max_size=80,
)


@given(records, st.integers(0, 80))
@settings(max_examples=60, deadline=None)
def test_the_market_does_not_depend_on_cuts_or_restarts(rows, cut):
    straight, cut_state = MarketState(), MarketState()
    whole = read(straight, rows)
    first = read(cut_state, rows[:cut])
    cut_state = MarketState.restore(cut_state.snapshot())
    second = read(cut_state, rows[cut:])
    columns = [(whole, first, second, name) for name in whole.__slots__ if name != "ended"]
    ended = (whole.ended, first.ended, second.ended)
    columns += [(*ended, name) for name in whole.ended.__slots__]
    for all_of_it, before, after, name in columns:
        assert np.array_equal(
            getattr(all_of_it, name), np.concatenate([getattr(before, name), getattr(after, name)])
        )
    assert straight.snapshot() == cut_state.snapshot()


def test_jumps_and_spikes_are_flagged_after_a_warm_up_only():
    rng = np.random.default_rng(1)
    calm = [(False, 0, t, int(10_000 + rng.integers(-3, 4)), 10) for t in range(100)]
    events = read(
        MarketState(), [*calm, (False, 0, 200, 11_000, 10), (False, 0, 201, 11_000, 9_999)]
    )
    assert not events.flags[:100].any()
    assert events.flags[100] & PRICE_JUMP
    assert events.flags[101] & VOLUME_SPIKE
    early = read(MarketState(), [(False, 0, 1, 100, 1), (False, 0, 2, 900, 9_999)])
    assert not early.flags.any()


def test_a_crossed_market_is_flagged_when_it_begins_and_has_no_mid():
    state = MarketState()
    events = read(state, [(True, 0, 1, 99, 101), (True, 0, 2, 103, 102), (True, 0, 3, 104, 102)])
    assert (events.flags & CROSSED).tolist() == [0, CROSSED, 0]
    marks = state.marks(np.array([0]))
    assert marks.twice_mid[0] == NO_PRICE
    read(state, [(True, 0, 4, 99, 102)])
    assert state.marks(np.array([0])).price()[0][0] == 100.5


def test_an_old_quote_makes_a_trade_stale_and_an_empty_side_has_no_mid():
    state = MarketState(stale_ms=100)
    trades = [(False, 0, time, 100, 1) for time in (100, 101, 102)]
    events = read(state, [(True, 0, 0, 99, 101), *trades])
    assert (events.flags & STALE_QUOTE).tolist() == [0, 0, STALE_QUOTE, STALE_QUOTE]
    # Told once, until a fresh quote comes.
    assert (events.flags & STALE_BEGINS).tolist() == [0, 0, STALE_BEGINS, 0]
    again = read(state, [(True, 0, 120, 99, 101), (False, 0, 300, 100, 1), (False, 0, 301, 100, 1)])
    assert (again.flags & STALE_BEGINS).tolist() == [0, STALE_BEGINS, 0]
    read(state, [(True, 0, 400, NO_PRICE, 101)])
    price, at = state.marks(np.array([0])).price()
    assert (price[0], at[0]) == (100, 301)


def option_grid():
    rng = np.random.default_rng(2)
    n = 60
    terms = OptionTerms(
        rng.uniform(60, 140, n), rng.uniform(0.05, 2, n), rng.uniform(-0.01, 0.06, n),
        rng.uniform(0, 0.04, n), rng.random(n) < 0.5,
    )  # fmt: skip
    return rng.uniform(80, 120, n), rng.uniform(0.1, 0.6, n), terms


def test_options_and_greeks_agree_with_quantlib():
    ql = pytest.importorskip("QuantLib")
    spot, volatility, terms = option_grid()
    found = greeks(spot, volatility, terms)
    for i in range(len(spot)):
        kind = ql.Option.Call if terms.is_call[i] else ql.Option.Put
        t = terms.years[i]
        discount = np.exp(-terms.rate[i] * t)
        forward = spot[i] * np.exp((terms.rate[i] - terms.dividend_yield[i]) * t)
        black = ql.BlackCalculator(
            ql.PlainVanillaPayoff(kind, float(terms.strike[i])), float(forward),
            float(volatility[i] * np.sqrt(t)), float(discount),
        )  # fmt: skip
        s, t = float(spot[i]), float(t)
        expected = (
            black.value(), black.delta(s), black.gamma(s), black.vega(t), black.theta(s, t),
            black.rho(t),
        )  # fmt: skip
        ours = [getattr(found, name)[i] for name in found.__slots__]
        assert ours == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_put_call_parity_implied_volatility_and_expiry_hold():
    spot, volatility, terms = option_grid()
    price = option_price(spot, volatility, terms)
    implied = implied_volatility(price, spot, terms)
    vega = greeks(spot, volatility, terms).vega
    assert implied[vega > 0.5] == pytest.approx(volatility[vega > 0.5], abs=1e-6)
    other = OptionTerms(terms.strike, terms.years, terms.rate, terms.dividend_yield, ~terms.is_call)
    sign = np.where(terms.is_call, 1, -1)
    parity = spot * np.exp(-terms.dividend_yield * terms.years) - terms.strike * np.exp(
        -terms.rate * terms.years
    )
    assert sign * (price - option_price(spot, volatility, other)) == pytest.approx(parity)
    dead = OptionTerms(
        terms.strike, 0 * terms.years, terms.rate, terms.dividend_yield, terms.is_call
    )
    intrinsic = np.maximum(sign * (spot - terms.strike), 0)
    assert option_price(spot, volatility, dead) == pytest.approx(intrinsic)


def test_revaluation_is_the_difference_of_prices():
    spot, volatility, terms = option_grid()
    shocks = np.array([[-0.2], [0.0], [0.1]]) * np.ones(len(spot))
    found = revalue(spot, volatility, terms, shocks)
    base = option_price(spot, volatility, terms)
    assert found[0] == pytest.approx(option_price(spot * 0.8, volatility, terms) - base)
    assert found[1] == pytest.approx(0)


def check(book, value, time_ms=0):
    return book.check(lambda limit: value, time_ms)


def test_a_limit_that_trembles_on_its_level_raises_one_alert():
    book = LimitBook()
    book.put(Limit("l", "firm", "F", "gross", 80, 100, hysteresis=0.05))
    seen = []
    for value in (50, 81, 79, 81, 79, 101, 99, 101, 96, 94, 77, 75, 81):
        seen += [(one.before.name, one.after.name) for one in check(book, value)]
    assert seen == [
        ("WITHIN", "NEAR"), ("NEAR", "BREACH"), ("BREACH", "NEAR"), ("NEAR", "WITHIN"),
        ("WITHIN", "NEAR"),
    ]  # fmt: skip


def test_an_acknowledged_breach_is_remembered_until_it_is_over():
    book = LimitBook()
    book.put(Limit("l", "firm", "F", "var", 80, 100))
    check(book, 120)
    assert book.put(Limit("l", "firm", "F", "var", 80, 100, revision=1, acknowledged_by="ann"))
    assert not book.put(Limit("l", "firm", "F", "var", 1, 2, revision=1))
    assert book.rows()[0][3]
    restored = LimitBook.restore(book.snapshot())
    assert restored.snapshot() == book.snapshot()
    assert check(restored, 85)[0].acknowledged
    check(restored, 10)
    assert not restored.rows()[0][3]


def test_an_unknown_measure_changes_no_limit_and_a_loss_is_only_a_loss():
    book = LimitBook()
    book.put(Limit("l", "firm", "F", "loss", 80, 100))
    assert check(book, -500) == []
    assert check(book, 100)[0].after is Status.BREACH
    assert check(book, None) == check(book, float("nan")) == []


@pytest.mark.parametrize(
    "terms", [("desk", "gross", 5, 4), ("planet", "gross", 1, 2), ("desk", "luck", 1, 2)]
)
def test_a_limit_that_makes_no_sense_is_refused(terms):
    scope, measure, warning, breach = terms
    with pytest.raises(LimitRecordError, match="expected"):
        Limit("l", scope, "x", measure, warning, breach)


def test_scenarios_take_the_most_particular_shock_and_keep_the_newest():
    scenarios = ScenarioSet(history=2)
    for day in range(3):
        scenarios.put(Scenario(f"d{day}", "historical", day, {"A": day / 10}))
    scenarios.put(Scenario("crash", "stress", 0, {"A": -0.5, "kind:bond": -0.1, "*": -0.3}))
    shocks, history, ids = scenarios.matrix(["A", "B", "C"], ["equity", "bond", "equity"])
    assert (history, ids) == (2, ["d1", "d2", "crash"])
    assert shocks.tolist() == [[0.1, 0, 0], [0.2, 0, 0], [-0.5, -0.1, -0.3]]
    with pytest.raises(ScenarioError, match="shocks"):
        Scenario("x", "stress", 0, {"A": -1.5})


def test_margin_is_the_worst_scenario_but_never_below_its_floor():
    pnl = np.array([[-5.0, 3.0], [2.0, 1.0]])
    assert scenario_margin(pnl, np.array([100.0, 100.0]), 0.02).tolist() == [5.0, 2.0]


def ended(worth, *value_at_risk):
    return {"F": DayEnd(worth, value_at_risk)}


def test_a_day_is_judged_by_the_forecast_it_began_with():
    chosen = (("plain", 0.95), ("age", 0.95))
    daily = DailyBacktest(chosen)
    assert daily.put({9: ended(100.0, 50.0, 65.0)}) == []
    first, other = daily.put({10: ended(40.0, 70.0, 70.0)})
    assert (first.day, first.forecast, first.pnl, first.exception) == (10, 50.0, -60.0, True)
    assert (other.method, other.forecast, other.exception) == ("age", 65.0, False)
    daily = DailyBacktest.restore(chosen, daily.snapshot())
    second, other = daily.put({11: ended(0.0, 70.0, 70.0)})
    assert (second.exception, second.report.observations, second.report.exceptions) == (False, 2, 1)
    assert other.report.exceptions == 0
    # Forecasts of other methods than before cannot be judged together with them.
    fresh = DailyBacktest.restore(chosen[:1], daily.snapshot())
    assert fresh.put({12: ended(-99.0, 1.0)}) == []


def test_a_day_that_ended_otherwise_is_judged_anew_with_those_after_it():
    chosen = (("plain", 0.95),)
    daily = DailyBacktest(chosen)
    first = {8: ended(100.0, 50.0), 9: ended(90.0, 50.0), 10: ended(40.0, 70.0)}
    before = daily.put(first)
    assert [(one.day, one.pnl, one.exception) for one in before] == [
        (9, -10.0, False),
        (10, -50.0, False),
    ]
    assert daily.put(first) == []
    again = daily.put({9: ended(30.0, 5.0)})
    assert [(one.day, one.pnl, one.exception, one.report.exceptions) for one in again] == [
        (9, -70.0, True, 1),
        (10, 10.0, False, 1),
    ]
    # What comes in any order is judged alike.
    other = DailyBacktest(chosen)
    told = [
        *other.put({10: ended(40.0, 70.0)}),
        *other.put({8: ended(100.0, 50.0)}),
        *other.put({9: ended(30.0, 5.0)}),
    ]
    assert {one.day: one for one in told} == {one.day: one for one in [*before, *again]}


def test_history_of_a_release_without_dates_is_taken_over():
    chosen = (("plain", 0.95),)
    blob = json.dumps(
        {
            "forecasters": chosen,
            "day": 10,
            "forecasts": {"F": (100.0, [50.0])},
            "hits": {"F": [[0], [1]]},
        }
    ).encode()
    (found,) = DailyBacktest.restore(chosen, blob).put({10: ended(40.0, 70.0)})
    assert (found.pnl, found.exception) == (-60.0, True)
    assert (found.report.observations, found.report.exceptions) == (3, 2)
