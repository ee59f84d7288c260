from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.market_risk.portfolio import (
    ewma_covariance,
    fast_tail_risk,
    monte_carlo,
    over_horizon,
    portfolio_risk,
)
from jobs.market_risk.value_at_risk import (
    age_weights,
    ewma_variance,
    rescale_to_current_volatility,
    tail_risk,
)
from schemas.errors import ConfigurationError

RETURNS = np.random.default_rng(7).standard_t(4, 750) * 0.01
METHODS = ("plain", "age", "volatility", "ewma", "normal")


@pytest.mark.parametrize("level", [0.9, 0.95, 0.975, 0.99])
def test_plain_var_is_numpys_quantile_by_each_convention(level):
    for convention, name in (("linear", "linear"), ("midpoint", "hazen"), ("step", "inverted_cdf")):
        found = tail_risk(RETURNS, level, quantile=convention)
        expected = -np.quantile(RETURNS, round(1 - level, 12), method=name)
        assert found.value_at_risk == pytest.approx(expected, rel=1e-12)


def test_expected_shortfall_is_the_mean_of_the_worst_whole_observations():
    found = tail_risk(RETURNS[:500], 0.95)
    assert found.expected_shortfall == pytest.approx(-np.sort(RETURNS[:500])[:25].mean())


def test_age_weights_fall_by_the_decay_and_sum_to_one():
    weights = age_weights(100, 0.97)
    assert weights.sum() == pytest.approx(1)
    assert weights[-1] == pytest.approx(0.03 / (1 - 0.97**100))
    assert weights[:-1] / weights[1:] == pytest.approx(0.97)


def test_age_weighted_var_interpolates_between_midpoints():
    # Brute force over the definition: sort, cumulate, put each return at the middle of its weight.
    pnl = RETURNS[:100]
    weights = 0.98 ** np.arange(99, -1, -1.0)
    weights /= weights.sum()
    order = np.argsort(pnl)
    middle = np.cumsum(weights[order]) - weights[order] / 2
    expected = -np.interp(0.05, middle, pnl[order])
    assert tail_risk(pnl, 0.95, "age").value_at_risk == pytest.approx(expected)


def test_volatility_weighting_scales_each_return_by_the_forecast_made_before_it():
    forecast = [np.mean(RETURNS**2)]
    for value in RETURNS:
        forecast.append(0.94 * forecast[-1] + 0.06 * value**2)
    scaled = RETURNS * np.sqrt(forecast[-1]) / np.sqrt(forecast[:-1])
    assert rescale_to_current_volatility(RETURNS) == pytest.approx(scaled)
    found = tail_risk(RETURNS, 0.99, "volatility")
    assert found.value_at_risk == pytest.approx(-np.quantile(scaled, 0.01))


def test_ewma_var_agrees_with_the_arch_library():
    arch = pytest.importorskip("arch.univariate")
    model = arch.EWMAVariance(0.94)
    variances = np.empty(len(RETURNS))
    start = np.mean(RETURNS**2)
    bounds = np.tile([0.0, 1.0], (len(RETURNS), 1))
    model.compute_variance(np.array([]), RETURNS, variances, start, bounds)
    ours = ewma_variance(RETURNS)
    assert ours[:-1] == pytest.approx(variances)
    last = 0.94 * variances[-1] + 0.06 * RETURNS[-1] ** 2
    found = tail_risk(RETURNS, 0.95, "ewma")
    assert found.value_at_risk == pytest.approx(1.6448536269514722 * np.sqrt(last))


@pytest.mark.parametrize("method", METHODS)
def test_components_sum_to_the_whole_by_every_method(method):
    pnl = np.random.default_rng(3).normal(0, 1, (400, 12)) * np.linspace(-3, 4, 12)
    for level in (0.95, 0.99):
        found = portfolio_risk(pnl, level, method)
        assert found.component_var.sum() == pytest.approx(found.total.value_at_risk)
        assert found.component_es.sum() == pytest.approx(found.total.expected_shortfall)


def test_marginal_var_of_the_parametric_method_is_its_derivative():
    returns = np.random.default_rng(4).normal(0, 0.01, (500, 3))
    exposure = np.array([100.0, -40.0, 60.0])
    base = portfolio_risk(returns * exposure, 0.99, "ewma")
    bumped = portfolio_risk(returns * (exposure + np.array([0.001, 0, 0])), 0.99, "ewma")
    slope = (bumped.total.value_at_risk - base.total.value_at_risk) / 0.001
    assert base.component_var[0] / 100 == pytest.approx(slope, rel=1e-4)


def test_many_portfolios_at_once_agree_with_one_at_a_time():
    pnl = np.random.default_rng(5).normal(0, 1, (500, 30))
    var, shortfall = fast_tail_risk(pnl, (0.95, 0.975, 0.99))
    for row, level in enumerate((0.95, 0.975, 0.99)):
        for column in range(30):
            one = tail_risk(pnl[:, column], level)
            assert var[row, column] == pytest.approx(one.value_at_risk)
            assert shortfall[row, column] == pytest.approx(one.expected_shortfall)


def test_monte_carlo_is_seeded_and_keeps_the_covariance():
    covariance = ewma_covariance(np.random.default_rng(6).normal(0, 0.01, (300, 4)))
    for distribution in ("normal", "student"):
        draws = monte_carlo(covariance, 100_000, 1, distribution=distribution)
        again = monte_carlo(covariance, 100_000, 1, distribution=distribution)
        assert np.array_equal(draws, again)
        assert draws.mean(axis=0) == pytest.approx(0, abs=1e-12)
        assert np.cov(draws.T) == pytest.approx(covariance, rel=0.1, abs=2e-6)


def test_a_horizon_scales_by_the_root_of_time_and_liquidity_lengthens_it():
    pnl = np.random.default_rng(8).normal(0, 1, (300, 3))
    one = portfolio_risk(pnl, 0.95)
    ten = over_horizon(one, 10)
    assert ten.total.value_at_risk == pytest.approx(one.total.value_at_risk * np.sqrt(10))
    slow = over_horizon(one, 1, np.array([1.0, 4.0, 1.0]))
    assert slow.component_var[1] == pytest.approx(2 * one.component_var[1])
    assert slow.total.value_at_risk == pytest.approx(slow.component_var.sum())


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60),
    st.floats(0.51, 0.999),
    st.sampled_from(METHODS),
)
@settings(max_examples=100, deadline=None)
def test_shortfall_is_never_below_step_var(values, level, method):
    found = tail_risk(np.array(values), level, method, quantile="step")
    slack = 1e-9 * (1 + abs(found.value_at_risk))
    assert found.expected_shortfall >= found.value_at_risk - slack


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([0.1]), 0.95), "two or more"),
        ((np.array([0.1, np.nan]), 0.95), "finite"),
        ((RETURNS, 0.4), "level"),
        ((RETURNS, 0.95, "garch"), "method"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        tail_risk(*arguments)
