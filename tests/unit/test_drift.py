"""Drift statistics equal SciPy's, and alert only on what matters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.drift import (
    DriftReference,
    drift_alerts,
    drift_of_window,
    drift_rows,
    kolmogorov_smirnov,
    live_quality,
)


@pytest.mark.parametrize("seed", range(20))
def test_the_distance_and_its_chance_equal_scipy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first = np.sort(np.round(generator.normal(size=300 + seed), seed % 3))
    second = np.sort(np.round(generator.normal(seed / 40, size=200), seed % 3))
    distance, chance = kolmogorov_smirnov(first, second)
    assert distance == pytest.approx(stats.ks_2samp(first, second).statistic, abs=1e-12)
    effective = np.sqrt(len(first) * len(second) / (len(first) + len(second)))
    assert chance == pytest.approx(stats.kstwobign.sf(effective * distance), abs=1e-9)


def _reference() -> DriftReference:
    sample = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    return DriftReference(("x", "y"), sample)


def test_the_same_distribution_does_not_breach() -> None:
    window = np.random.default_rng(1).normal(size=(1000, 3))
    measures = drift_of_window(_reference(), window[:, :2], window[:, 2], expected_rows=900)
    assert not [one for one in measures if one.breached]


def test_a_shift_breaches_in_the_feature_that_moved_and_alerts_once() -> None:
    window = np.random.default_rng(1).normal(size=(1000, 3))
    window[:, 0] += 1.5
    measures = drift_of_window(_reference(), window[:, :2], window[:, 2])
    assert {one.feature for one in measures if one.breached} == {"x"}
    alerts = drift_alerts(measures, "model@1", 0, 60_000)
    assert [alert["alert_id"] for alert in alerts] == ["drift:model@1:x:60000"]
    assert {reason["code"] for reason in alerts[0]["reasons"]} == {"drift_psi", "drift_ks"}
    rows = drift_rows(measures, "model@1", 0, 60_000)
    assert len(rows) == len(measures)
    assert {row["measure"] for row in rows} == {"psi", "ks", "missing_rate"}


def test_missing_values_and_an_empty_stream_breach() -> None:
    window = np.random.default_rng(1).normal(size=(1000, 3))
    window[:200, 1] = np.nan
    measures = drift_of_window(_reference(), window[:, :2], window[:, 2], expected_rows=10_000)
    breached = {(one.feature, one.measure) for one in measures if one.breached}
    assert breached == {("y", "missing_rate"), ("score", "population")}


def test_a_window_with_few_rows_is_measured_but_never_alerts() -> None:
    window = np.full((20, 3), 9.0)
    measures = drift_of_window(_reference(), window[:, :2], window[:, 2])
    assert max(one.value for one in measures) > 1
    assert not [one for one in measures if one.breached]


def test_live_quality_waits_for_labels_and_corrects_for_those_still_out() -> None:
    day = 86_400_000
    generator = np.random.default_rng(5)
    times = generator.integers(0, 20 * day, 40_000)
    fraud = generator.random(40_000) < 0.05
    flagged = np.where(fraud, generator.random(40_000) < 0.6, generator.random(40_000) < 0.01)
    delays = generator.integers(0, 7 * day, 40_000)
    labelled_at = np.where(fraud, times + delays, -1)
    quality = live_quality(times, flagged, fraud, labelled_at, 20 * day, 7 * day)
    truth = (flagged & fraud).sum() / flagged.sum()
    naive_hits = (flagged & fraud & (labelled_at <= 20 * day)).sum()
    assert quality.recall == pytest.approx(0.6, abs=0.03)
    assert quality.precision == pytest.approx(truth, abs=0.03)
    assert abs(quality.precision_corrected - truth) < abs(naive_hits / flagged.sum() - truth)
