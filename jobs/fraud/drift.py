"""Compare what the live models meet with what they learned from, window by window.

Reads scored rows, labels and the models' reference samples; writes tables `drift` and
`model_quality` and publishes alerts. The job knows nothing of it. Windows are of event time and
compared once, when the newest event is past their end by the grace; rows that come later still are
seen by no window, as a person would have seen them by then anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from connectors.drift_store import DriftStore, WindowCount
from jobs.fraud.features import FRAUD_FEATURES
from jobs.windows.durations import DAY_MS
from models.drift import (
    SCORE,
    DriftLimits,
    DriftMeasure,
    DriftReference,
    drift_alerts,
    drift_of_window,
    drift_rows,
    live_quality,
)
from models.errors import ModelNotFoundError
from models.registry import Registry

__all__ = ["DriftPlan", "DriftRun", "DriftWatch"]

_SAMPLE: Final = 5_000
# Rows a window and model: more than twice the reference sample, so the reference is what bounds the
# precision of PSI and KS; 15 features of 5,000 rows are 0.6 MB.

_SCAN: Final = 48
# Windows read in one query; a backlog of months does not have to fit into memory at once.

_PAST_DAYS: Final = 7

_PERIOD_MS: Final = {"night": DAY_MS, "weekend": 7 * DAY_MS}
# How long the calendar takes to come round. Over less than that the clock alone moves these
# features: every hour is all night or all day.


@dataclass(frozen=True, slots=True)
class DriftPlan:
    """Lengths in milliseconds of event time; at most `most_windows` windows a run, the newest."""

    window_ms: int
    grace_ms: int
    label_delay_ms: int
    limits: DriftLimits = field(default_factory=DriftLimits)
    most_windows: int = 1_000


@dataclass(frozen=True, slots=True)
class DriftRun:
    """What one look found: rows of both tables, alerts, and models that have no reference."""

    windows: int = 0
    drift: list[dict[str, Any]] = field(default_factory=list)
    quality: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    without_reference: tuple[str, ...] = ()


class DriftWatch:
    """Finds windows that are complete and not compared yet, and compares them."""

    def __init__(
        self,
        store: DriftStore,
        registry: Registry,
        plan: DriftPlan,
        publish: Callable[[Sequence[dict[str, Any]]], None],
    ) -> None:
        """Take the parts; `publish` sends alerts and returns when they are confirmed."""
        self._store = store
        self._registry = registry
        self._plan = plan
        self._publish = publish
        self._references: dict[str, tuple[tuple[str, ...], DriftReference] | None] = {}
        self._calendar = frozenset(
            feature.name
            for feature in FRAUD_FEATURES.event
            if plan.window_ms % _PERIOD_MS.get(feature.operation, 1)
        )

    def look(self, *, write: bool = True) -> DriftRun:
        """Compare every complete window that was not compared; without `write` only tell.

        Alerts are published before the windows are remembered: after a failure in between they are
        published again under the same ids, and none is lost.
        """
        plan, length = self._plan, self._plan.window_ms
        newest = self._store.newest_event_ms()
        if newest is None:
            return DriftRun()
        end = (newest - plan.grace_ms) // length
        known = self._store.compared_until_ms(length)
        first = end - plan.most_windows if known is None else known // length
        first = max(first, end - plan.most_windows)
        run = DriftRun()
        for low in range(first, end, _SCAN):
            part = self._compare(low, min(low + _SCAN, end))
            run.drift.extend(part.drift)
            run.alerts.extend(part.alerts)
            run = replace(run, windows=run.windows + part.windows)
        if run.windows:
            run.quality.extend(self._judge(end * length))
        if write:
            self._publish(run.alerts)
            self._store.write_quality(run.quality)
            self._store.write_drift(run.drift)
        silent = tuple(version for version, found in self._references.items() if found is None)
        return replace(run, without_reference=silent)

    def _compare(self, low: int, high: int) -> DriftRun:
        length = self._plan.window_ms
        past = _PAST_DAYS * max(1, DAY_MS // length)
        counts = self._store.counts(length, (low - past) * length, high * length)
        run = DriftRun(windows=len({one.window for one in counts if one.window >= low}))
        expected = _Expected(counts, length)
        for version in sorted({one.model_version for one in counts if one.window >= low}):
            reference = self._reference(version)
            if reference is None:
                run.drift.extend(_only_counted(counts, version, low, length))
                continue
            names, known = reference
            sample = self._store.sample(
                version, names, length, low * length, high * length, _SAMPLE
            )
            for one in counts:
                if one.model_version != version or one.window < low:
                    continue
                rows = sample.window == one.window
                measures = drift_of_window(
                    known,
                    sample.features[rows],
                    sample.score[rows],
                    expected.rows(one.window),
                    self._plan.limits,
                    rows=one.rows,
                    population=expected.of_window(one.window),
                )
                measures = [
                    replace(measure, breached=False)
                    if measure.feature in self._calendar and measure.measure in ("psi", "ks")
                    else measure
                    for measure in measures
                ]
                span = one.window * length, (one.window + 1) * length
                run.drift.extend(drift_rows(measures, version, *span))
                run.alerts.extend(drift_alerts(measures, version, *span))
        return run

    def _reference(self, version: str) -> tuple[tuple[str, ...], DriftReference] | None:
        if version not in self._references:
            self._references[version] = None
            try:
                manifest = self._registry.manifest(version)
                sample = self._registry.reference(manifest)
            except ModelNotFoundError:
                return None
            if sample is not None and set(manifest.features) <= set(FRAUD_FEATURES.names):
                self._references[version] = (
                    manifest.features,
                    DriftReference(manifest.features, sample),
                )
        return self._references[version]

    def _judge(self, as_of_ms: int) -> list[dict[str, Any]]:
        delay = self._plan.label_delay_ms
        first = as_of_ms - 2 * delay
        counts: dict[str, tuple[int, int]] = {}
        for one in self._store.counts(delay, first, as_of_ms):
            rows, mature = counts.get(one.model_version, (0, 0))
            counts[one.model_version] = rows + one.rows, mature
        for one in self._store.counts(delay, first, as_of_ms - delay + 1):
            rows, mature = counts[one.model_version]
            counts[one.model_version] = rows, mature + one.rows
        judged = self._store.judged(first, as_of_ms)
        found = []
        for version, (rows, mature) in counts.items():
            mine = [row for row in judged if row["model_version"] == version]
            quality = live_quality(
                np.array([row["event_time_ms"] for row in mine], np.int64),
                np.array([bool(row["flagged"]) for row in mine], np.bool_),
                np.array([bool(row["is_fraud"]) for row in mine], np.bool_),
                np.array([row["labelled_at_ms"] for row in mine], np.int64),
                as_of_ms,
                delay,
            )
            found.append(
                {
                    "model_version": version,
                    "window_start": first,
                    "window_end": as_of_ms,
                    "as_of": as_of_ms,
                    "events": rows,
                    "mature": mature,
                    "flagged": quality.flagged,
                    "precision": quality.precision,
                    "recall": quality.recall,
                    "precision_corrected": quality.precision_corrected,
                    "recall_corrected": quality.recall_corrected,
                }
            )
        return found


def _only_counted(
    counts: Sequence[WindowCount], version: str, low: int, length: int
) -> list[dict[str, Any]]:
    """Return a row a window with its count, so that the window is remembered as seen."""
    return [
        row
        for one in counts
        if one.model_version == version and one.window >= low
        for row in drift_rows(
            [DriftMeasure(SCORE, "rows", float(one.rows), 0.0, False, one.rows)],
            version,
            one.window * length,
            (one.window + 1) * length,
        )
    ]


class _Expected:
    """How many rows a window usually holds: the median of the same time on earlier days."""

    def __init__(self, counts: Sequence[WindowCount], window_ms: int) -> None:
        self._rows: dict[int, int] = {}
        for one in counts:
            self._rows[one.window] = self._rows.get(one.window, 0) + one.rows
        self._day = max(1, DAY_MS // window_ms)

    def of_window(self, window: int) -> int:
        return self._rows[window]

    def rows(self, window: int) -> float | None:
        earlier = [
            self._rows[window - days * self._day]
            for days in range(1, _PAST_DAYS + 1)
            if window - days * self._day in self._rows
        ]
        return float(np.median(earlier)) if earlier else None
