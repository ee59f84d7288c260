from __future__ import annotations

import numpy as np
import pytest

from jobs.market_risk.backtest import (
    backtest,
    christoffersen_independence,
    conditional_coverage,
    confidence_of,
    kupiec,
    traffic_light,
)
from schemas.errors import ConfigurationError


def test_kupiec_agrees_with_the_published_example():
    found = kupiec(1043, 57, 0.95)
    assert found.statistic == pytest.approx(0.46147, abs=5e-6)
    assert found.p_value == pytest.approx(0.49694, abs=5e-6)
    assert not found.rejected()


def test_kupiec_holds_at_the_ends():
    assert kupiec(250, 0, 0.99).statistic == pytest.approx(-2 * 250 * np.log(0.99))
    assert kupiec(10, 10, 0.95).statistic == pytest.approx(-20 * np.log(0.05))
    assert kupiec(100, 5, 0.95).statistic == pytest.approx(0)


@pytest.mark.parametrize("level", [0.95, 0.05, 95])
def test_a_level_may_be_a_confidence_a_tail_or_a_percentage(level):
    assert confidence_of(level) == 0.95


@pytest.mark.parametrize("level", [0, 1, -0.1, 100, float("nan")])
def test_a_level_that_is_none_of_them_is_refused(level):
    with pytest.raises(ConfigurationError, match=r"0\.95"):
        confidence_of(level)


@pytest.mark.parametrize(
    ("exceptions", "zone", "increase"),
    [
        (4, "green", 0.0),
        (5, "yellow", 0.4),
        (9, "yellow", 0.85),
        (10, "red", 1.0),
        (30, "red", 1.0),
    ],
)
def test_the_traffic_light_is_basels_table(exceptions, zone, increase):
    found = traffic_light(250, exceptions, 0.99)
    assert (found.zone, found.multiplier_increase) == (zone, increase)


def test_clustered_exceptions_fail_independence_and_scattered_ones_pass():
    clustered = np.zeros(500, bool)
    clustered[100:125] = True
    scattered = np.zeros(500, bool)
    scattered[::20] = True
    assert christoffersen_independence(clustered).p_value < 1e-6
    assert christoffersen_independence(scattered).p_value > 0.05
    joint = conditional_coverage(clustered, 0.95)
    parts = kupiec(500, 25, 0.95).statistic + christoffersen_independence(clustered).statistic
    assert joint.statistic == pytest.approx(parts)
    assert joint.degrees_of_freedom == 2


def test_independence_is_the_likelihood_ratio_of_its_counts():
    # Counted by hand: 0->0 three times, 0->1 twice, 1->0 twice, 1->1 once.
    hits = np.array([0, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    found = christoffersen_independence(hits)
    free = 3 * np.log(3 / 5) + 2 * np.log(2 / 5) + 2 * np.log(2 / 3) + np.log(1 / 3)
    null = 5 * np.log(5 / 8) + 3 * np.log(3 / 8)
    assert found.statistic == pytest.approx(2 * (free - null))


def test_counts_that_disagree_with_the_sequence_are_refused():
    with pytest.raises(ConfigurationError, match="sequence"):
        backtest(10, 2, 0.95, np.zeros(10, bool))
    with pytest.raises(ConfigurationError, match="exceptions"):
        kupiec(10, 11, 0.95)
