"""Compare what a model meets with what it learned from: per feature and for the score, per window.

Two samples are compared: the reference kept with the model and the rows of one window.

================  ==================================================================================
measure           meaning
================  ==================================================================================
`psi`             population stability index over the reference's deciles: sum of (q - p) ln(q / p)
`ks`              two-sample Kolmogorov-Smirnov distance, as `scipy.stats.ks_2samp`
`missing_rate`    share of NaN in the window; its limit is on the change against the reference
`population`      rows of the window over rows expected
================  ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SCORE",
    "DriftLimits",
    "DriftMeasure",
    "DriftReference",
    "LiveQuality",
    "drift_alerts",
    "drift_of_window",
    "drift_rows",
    "kolmogorov_smirnov",
    "live_quality",
    "population_stability",
]

Values = NDArray[np.float64]

SCORE: Final = "score"
"""Name under which the model's own score is compared."""

_SMALLEST_SHARE: Final = 1e-4
# An empty bin would make PSI infinite; a share of 1 in 10,000 is below what a window can resolve.


@dataclass(frozen=True, slots=True)
class DriftLimits:
    """When a measure counts as breached.

    0.25 is the usual "significant shift" of PSI. KS breaches only when it is both significant at
    `ks_p_value` and larger than `ks_distance`: a large window makes any difference significant.
    """

    psi: float = 0.25
    ks_distance: float = 0.15
    ks_p_value: float = 0.001
    missing_change: float = 0.05
    population_low: float = 0.5
    population_high: float = 2.0
    least_rows: int = 200


@dataclass(frozen=True, slots=True)
class DriftMeasure:
    """One measure of one feature; `value` beyond `threshold` is a breach."""

    feature: str
    measure: str
    value: float
    threshold: float
    breached: bool
    events: int


class DriftReference:
    """The reference sample, sorted and cut into deciles once. Shape (rows, features + 1 score)."""

    def __init__(self, names: Sequence[str], sample: NDArray[np.float32]) -> None:
        """Prepare a sample whose columns are `names` and then the score."""
        self.names: Final = (*names, SCORE)
        self._sorted: list[Values] = []
        self._edges: list[Values] = []
        self._shares: list[Values] = []
        self._missing: list[float] = []
        for column in range(sample.shape[1]):
            cells = sample[:, column].astype(np.float64)
            known = np.sort(cells[~np.isnan(cells)])
            edges = np.unique(np.quantile(known, np.linspace(0.1, 0.9, 9))) if len(known) else known
            self._sorted.append(known)
            self._edges.append(edges)
            self._shares.append(_shares(known, edges))
            self._missing.append(float(np.isnan(cells).mean()))

    def compare(
        self, column: int, cells: Values, limits: DriftLimits, events: int
    ) -> tuple[DriftMeasure, ...]:
        """Compare one column of a window of `events` rows, in the order of `names`."""
        name = self.names[column]
        # The model sees float32; so does its reference.
        cells = cells.astype(np.float32).astype(np.float64)
        known = np.sort(cells[~np.isnan(cells)])
        rows = len(cells)
        missing = 1.0 - len(known) / rows if rows else 0.0
        enough = rows >= limits.least_rows
        expected = self._missing[column]
        measures = [
            DriftMeasure(
                name,
                "missing_rate",
                missing,
                expected + limits.missing_change,
                enough and abs(missing - expected) > limits.missing_change,
                events,
            )
        ]
        if len(known) and len(self._sorted[column]):
            psi = population_stability(self._shares[column], _shares(known, self._edges[column]))
            distance, chance = kolmogorov_smirnov(self._sorted[column], known)
            measures += [
                DriftMeasure(name, "psi", psi, limits.psi, enough and psi > limits.psi, events),
                DriftMeasure(
                    name,
                    "ks",
                    distance,
                    limits.ks_distance,
                    enough and distance > limits.ks_distance and chance < limits.ks_p_value,
                    events,
                ),
            ]
        return tuple(measures)


def _shares(ordered: Values, edges: Values) -> Values:
    # Bins are (edge, next edge]; a value equal to an edge counts below it.
    counts = np.diff(
        np.concatenate([[0], np.searchsorted(ordered, edges, side="right"), [len(ordered)]])
    )
    shares: Values = counts / max(1, len(ordered))
    return shares


def population_stability(reference: Values, current: Values) -> float:
    """Return the population stability index of two lists of bin shares."""
    p = np.maximum(reference, _SMALLEST_SHARE)
    q = np.maximum(current, _SMALLEST_SHARE)
    return float(np.sum((q - p) * np.log(q / p)))


def kolmogorov_smirnov(first: Values, second: Values) -> tuple[float, float]:
    """Return the two-sample distance and its asymptotic p-value; both samples sorted, not empty.

    The p-value is Kolmogorov's limit at sqrt(n m / (n + m)) times the distance
    (`scipy.stats.kstwobign.sf`).
    """
    both = np.concatenate([first, second])
    below_first = np.searchsorted(first, both, side="right") / len(first)
    below_second = np.searchsorted(second, both, side="right") / len(second)
    distance = float(np.max(np.abs(below_first - below_second)))
    effective = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    return distance, _kolmogorov_tail(effective * distance)


def _kolmogorov_tail(x: float) -> float:
    # The alternating series converges fast for large x, its theta-transform for small x.
    if x <= 0:
        return 1.0
    if x < 1.0:
        terms = [math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 6)]
        return 1.0 - math.sqrt(2 * math.pi) / x * sum(terms)
    signs = [1.0 if k % 2 else -1.0 for k in range(20)]
    return 2.0 * sum(signs[k] * math.exp(-2.0 * (k * x) ** 2) for k in range(1, 20))


def drift_of_window(
    reference: DriftReference,
    features: Values,
    scores: Values,
    expected_rows: float | None = None,
    limits: DriftLimits | None = None,
    *,
    rows: int | None = None,
    population: int | None = None,
) -> list[DriftMeasure]:
    """Compare one window: features (n, k) in the model's order and their scores (n,).

    `expected_rows` is what such a window usually holds; None leaves the population out. A window
    below `least_rows` is measured but never breached. Where the rows are a sample of the window,
    `rows` says how many of the model's rows it holds; `population` counts those of all models.
    """
    limits = limits or DriftLimits()
    rows = len(scores) if rows is None else rows
    population = rows if population is None else population
    measures: list[DriftMeasure] = []
    if expected_rows:
        ratio = population / expected_rows
        low = ratio < limits.population_low
        threshold = limits.population_low if low else limits.population_high
        measures.append(
            DriftMeasure(
                SCORE,
                "population",
                ratio,
                threshold,
                low or ratio > limits.population_high,
                population,
            )
        )
    for column in range(features.shape[1]):
        measures += reference.compare(column, features[:, column], limits, rows)
    measures += reference.compare(features.shape[1], scores, limits, rows)
    return measures


def drift_rows(
    measures: Sequence[DriftMeasure], model_version: str, start_ms: int, end_ms: int
) -> list[dict[str, Any]]:
    """Return rows of the ClickHouse table `drift`; times in epoch milliseconds."""
    return [
        {
            "model_version": model_version,
            "feature": one.feature,
            "measure": one.measure,
            "window_start": start_ms,
            "window_end": end_ms,
            "value": one.value,
            "threshold": one.threshold,
            "breached": one.breached,
            "events": one.events,
        }
        for one in measures
    ]


def drift_alerts(
    measures: Sequence[DriftMeasure], model_version: str, start_ms: int, end_ms: int
) -> list[dict[str, Any]]:
    """Return the breaches as alerts of kind `drift`: one a feature, its measures as reasons.

    The id is a pure function of model, feature and window, so a window compared twice alerts once.
    Envelope fields that belong to the publisher (source, publishing times) are left to it.
    """
    alerts: dict[str, dict[str, Any]] = {}
    for one in measures:
        if not one.breached:
            continue
        alert = alerts.setdefault(
            one.feature,
            {
                "alert_id": f"drift:{model_version}:{one.feature}:{end_ms}",
                "kind": "drift",
                "severity": "warning",
                "entity_type": "model",
                "entity_id": model_version,
                "event_time_ms": end_ms,
                "score": one.value,
                "threshold": one.threshold,
                "decision": "drift",
                "model_version": model_version,
                "reasons": [],
                "attributes": {"window_start_ms": str(start_ms), "window_end_ms": str(end_ms)},
            },
        )
        alert["reasons"].append(
            {
                "code": f"drift_{one.measure}",
                "kind": "drift",
                "text": (
                    f"{one.measure} of {one.feature} is {one.value:.3f}, the limit is "
                    f"{one.threshold:.3f}, over {one.events} events"
                ),
                "feature": one.feature,
                "value": one.value,
                "contribution": None,
            }
        )
    return list(alerts.values())


@dataclass(frozen=True, slots=True)
class LiveQuality:
    """Precision and recall of decisions so far.

    `mature` counts events old enough for their labels to be in; `recall_corrected` also counts the
    frauds that young events are still expected to turn into.
    """

    mature: int
    flagged: int
    precision: float
    recall: float
    precision_corrected: float
    recall_corrected: float


def live_quality(
    event_time_ms: NDArray[np.int64],
    flagged: NDArray[np.bool_],
    is_fraud: NDArray[np.bool_],
    labelled_at_ms: NDArray[np.int64],
    as_of_ms: int,
    label_delay_ms: int,
) -> LiveQuality:
    """Judge decisions with the labels known at `as_of_ms`.

    An event older than `label_delay_ms` without a fraud label is genuine; a younger one is not
    known. `labelled_at_ms` is -1 where no label came. The correction weighs each fraud found among
    young events by the inverse of the share of mature frauds that were labelled by that age
    (inverse probability weighting), up to a factor of 20.
    """
    known = is_fraud & (labelled_at_ms >= 0) & (labelled_at_ms <= as_of_ms)
    age = as_of_ms - event_time_ms
    seen = age >= 0
    mature = seen & (age >= label_delay_ms)
    hits = int((mature & flagged & known).sum())
    alerts = int((mature & flagged).sum())
    frauds = int((mature & known).sum())
    delays = np.sort((labelled_at_ms - event_time_ms)[mature & known])
    weight = np.where(mature, 1.0, 0.0)
    young = seen & ~mature & known
    if len(delays) and young.any():
        share = np.searchsorted(delays, age[young], side="right") / len(delays)
        weight[young] = 1.0 / np.maximum(share, 0.05)
    all_hits = float(weight[known & flagged & seen].sum())
    all_frauds = float(weight[known & seen].sum())
    all_alerts = int((seen & flagged).sum())
    return LiveQuality(
        mature=int(mature.sum()),
        flagged=alerts,
        precision=hits / alerts if alerts else math.nan,
        recall=hits / frauds if frauds else math.nan,
        precision_corrected=min(1.0, all_hits / all_alerts) if all_alerts else math.nan,
        recall_corrected=all_hits / all_frauds if all_frauds else math.nan,
    )
