"""Risk by every method in the stream, against one portfolio at a time and first principles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jobs.market_risk.engine import EngineConfig, FillColumns, RiskEngine
from jobs.market_risk.market import NO_PRICE
from jobs.market_risk.methods import METHODS, MethodKit, method_risk
from jobs.market_risk.options import OptionTerms, option_price
from jobs.market_risk.portfolio import ewma_covariance
from jobs.market_risk.prices import MarkColumns
from jobs.market_risk.reference import YEAR_MS, Instrument
from jobs.market_risk.stress import Scenario
from jobs.market_risk.value_at_risk import tail_risk
from schemas.columns import StringColumn

LEVELS = (0.95, 0.975, 0.99)


@pytest.fixture(scope="module")
def pnl():
    random = np.random.default_rng(11)
    calm = random.standard_t(4, (300, 7)) * 1_000
    calm[:, 3] = 0.0  # a flat book
    calm[:, 4] = np.round(calm[:, 4], -3)  # many ties
    return calm


@pytest.mark.parametrize("method", ["plain", "age", "volatility", "ewma"])
def test_many_portfolios_at_once_have_the_risk_of_each_alone(pnl, method):
    kit = MethodKit.of(len(pnl), 10)
    var, shortfall = method_risk(method, kit, LEVELS, pnl, pnl[:0], pnl)
    for place, level in enumerate(LEVELS):
        for column in range(pnl.shape[1]):
            alone = tail_risk(pnl[:, column], level, method)
            assert var[place, column] == pytest.approx(alone.value_at_risk, abs=1e-9)
            assert shortfall[place, column] == pytest.approx(alone.expected_shortfall, abs=1e-9)


def test_draws_have_the_ewma_covariance_of_the_scenarios():
    random = np.random.default_rng(2)
    shocks = random.normal(0, [0.01, 0.02, 0.005], (250, 3))
    shocks[:, 1] += 0.8 * shocks[:, 0]
    kit = MethodKit.of(250, 60_000)
    drawn = kit.draws @ shocks
    assert np.abs(drawn.mean(axis=0)).max() < 1e-12  # antithetic
    wanted = ewma_covariance(shocks)
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert np.abs(drawn.T @ drawn / len(drawn) - wanted).max() < 0.02 * scale.max()


def test_monte_carlo_of_a_linear_book_is_its_ewma_var(pnl):
    kit = MethodKit.of(len(pnl), 60_000)
    drawn, _ = method_risk("montecarlo", kit, LEVELS, pnl, kit.draws @ pnl, pnl)
    normal, _ = method_risk("ewma", kit, LEVELS, pnl, pnl[:0], pnl)
    assert drawn == pytest.approx(normal, rel=0.03)


def text(values):
    return StringColumn.from_texts(list(values))


def book(positions, prices, terms=(), shocks=None, *, now_ms=1_000, config=None):
    """An engine with one account that holds `positions` (units) at `prices`."""
    engine = RiskEngine(config or EngineConfig(levels=LEVELS, simulated=40_000))
    for item in terms:
        engine.put_instrument(item)
    names = list(prices)
    for day, row in enumerate(shocks if shocks is not None else []):
        given = dict(zip(names, np.atleast_1d(row).tolist(), strict=True))
        engine.put_scenario(Scenario(f"d{day:04}", "historical", day, given))
    held = list(positions)
    one = np.ones(len(held), np.int64)
    engine.add_fills(
        FillColumns(
            text(f"f{row}" for row in range(len(held))),
            text(["F"] * len(held)), text(["D"] * len(held)), text(["A"] * len(held)),
            text(held), now_ms * one, np.array([positions[name] for name in held]), 0 * one,
            np.array([round(prices[name] * 10_000) for name in held]), 4 * one, 0 * one,
        )
    )  # fmt: skip
    one = np.ones(len(names), np.int64)
    engine.put_marks(
        MarkColumns(
            text(names), 4 * one, np.array([round(prices[name] * 10_000) for name in names]),
            now_ms * one, NO_PRICE * one, -one,
        )
    )  # fmt: skip
    return engine


def by_method(engine, scope="firm", scope_id="F"):
    found = engine.evaluate()
    place = found.grouping.index["F", scope, scope_id] - found.grouping.instruments
    return found, dict(zip(METHODS, found.groups.method_var[:, :, place], strict=True))


def test_the_engine_measures_a_book_by_every_method_as_by_hand():
    random = np.random.default_rng(5)
    shocks = random.normal(0, [0.01, 0.03], (250, 2))
    prices = {"X": 50.0, "Y": 20.0}
    held = {"X": 400, "Y": -300}
    _, risk = by_method(book(held, prices, shocks=shocks))
    pnl = shocks @ np.array([400 * 50.0, -300 * 20.0])
    for place, level in enumerate(LEVELS):
        assert risk["plain"][place] == pytest.approx(-np.quantile(pnl, 1 - level))
        for method in ("age", "volatility"):
            wanted = tail_risk(pnl, level, method).value_at_risk
            assert risk[method][place] == pytest.approx(wanted)
    exposure = np.array([400 * 50.0, -300 * 20.0])
    sigma = np.sqrt(exposure @ ewma_covariance(shocks) @ exposure)
    assert risk["ewma"] == pytest.approx(stats.norm.ppf(LEVELS) * sigma)
    assert risk["montecarlo"] == pytest.approx(risk["ewma"], rel=0.03)
    assert risk["liquidity"] == pytest.approx(risk["plain"])


def test_an_instrument_that_takes_four_days_to_leave_doubles_its_liquidity_var():
    shocks = np.random.default_rng(6).normal(0, 0.02, (250, 1))
    slow = [Instrument("X", liquidity_days=4.0)]
    _, risk = by_method(book({"X": 100}, {"X": 50.0}, slow, shocks))
    assert risk["liquidity"] == pytest.approx(2 * risk["plain"])


def an_option(now_ms, **terms):
    chosen = dict(kind="option", underlying_id="U", strike=100.0, right="put", volatility=0.3,
                  rate=0.02, expiry_ms=now_ms + YEAR_MS // 4)  # fmt: skip
    return Instrument("P", **(chosen | terms))


def put_value(spot, volatility=0.3, years=0.25, rate=0.02):
    one = np.ones(1)
    terms = OptionTerms(100 * one, years * one, rate * one, 0 * one, one != 1)
    return float(option_price(spot * one, volatility * one, terms)[0])


def test_greeks_of_a_position_are_slopes_of_its_value():
    now_ms = 86_400_000
    shocks = np.random.default_rng(7).normal(0, 0.02, (60, 2))
    prices = {"P": put_value(100.0), "U": 100.0}
    engine = book({"P": -30}, prices, [an_option(now_ms, multiplier=10)], shocks, now_ms=now_ms)
    found = engine.evaluate()
    size, step = -300, 1e-4
    slope = (put_value(100 + step) - put_value(100 - step)) / (2 * step)
    assert found.greeks.delta[0] == pytest.approx(size * slope * 100, rel=1e-6)
    risen = (put_value(101 + step) - put_value(101 - step)) / (2 * step) * 100
    gamma = found.greeks.gamma[0]
    assert gamma == pytest.approx(size * (risen - slope * 100), rel=0.05)
    vega = put_value(100, 0.305) - put_value(100, 0.295)
    assert found.greeks.vega[0] == pytest.approx(size * vega, rel=1e-4)
    theta = put_value(100, years=0.25 - 1 / 365) - put_value(100)
    assert found.greeks.theta[0] == pytest.approx(size * theta, rel=0.01)
    rho = put_value(100, rate=0.025) - put_value(100, rate=0.015)
    assert found.greeks.rho[0] == pytest.approx(size * rho, rel=1e-3)
    firm = found.grouping.index["F", "firm", "F"]
    assert found.group_greeks.delta[firm] == pytest.approx(found.greeks.delta.sum())


def test_monte_carlo_revalues_a_written_put_where_a_straight_line_is_too_kind():
    now_ms = 86_400_000
    shocks = np.random.default_rng(8).normal(0, [0.0, 0.08], (250, 2))
    prices = {"P": put_value(100.0), "U": 100.0}
    engine = book({"P": -30}, prices, [an_option(now_ms)], shocks, now_ms=now_ms)
    found, risk = by_method(engine)
    sigma = float(np.sqrt(ewma_covariance(shocks[:, 1:])[0, 0]))
    fall = -stats.norm.ppf(LEVELS) * sigma
    wanted = [30 * (put_value(100 * (1 + one)) - put_value(100.0)) for one in fall]
    assert risk["montecarlo"] == pytest.approx(wanted, rel=0.05)
    straight = -30 * found.greeks.delta[0] / -30 * fall
    assert np.all(risk["montecarlo"] > 1.05 * np.abs(straight))


def test_components_and_marginals_say_what_a_little_more_would_cost():
    shocks = np.random.default_rng(9).normal(0, [0.01, 0.03, 0.02], (250, 3))
    prices = {"X": 50.0, "Y": 20.0, "Z": 10.0}
    held = {"X": 40_000, "Y": -30_000, "Z": 50_000}
    found, _ = by_method(book(held, prices, shocks=shocks))
    firm = found.grouping.index["F", "firm", "F"]
    assert found.component_var.sum() == pytest.approx(found.groups.var[-1, firm])
    assert found.component_es.sum() == pytest.approx(found.groups.expected_shortfall[-1, firm])
    more, _ = by_method(book(held | {"Y": held["Y"] + 1}, prices, shocks=shocks))
    change = more.groups.var[-1, firm] - found.groups.var[-1, firm]
    # One more unit is 20 of money; the worst scenarios stay the same ones.
    value = found.positions.value[1] / 10_000
    assert change == pytest.approx(20 * found.component_var[1] / value, rel=1e-6)


def test_without_scenarios_there_is_no_var_by_any_method():
    found = book({"X": 1}, {"X": 5.0}).evaluate()
    assert found.groups.method_var.shape[1] == 0
    assert found.greeks.delta.tolist() == [5.0]
