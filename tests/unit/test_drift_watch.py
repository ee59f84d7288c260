"""Windows of live rows compared with what the models learned, each once."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.drift_metrics import DriftMetrics
from connectors.drift_store import WindowCount, WindowSample
from jobs.fraud.drift import DriftPlan, DriftWatch
from jobs.fraud.features import FRAUD_FEATURES
from models.drift import DriftLimits
from models.manifest import Reference, sha256_of
from models.registry import Registry
from tests.support.models import amount_model

NAMES = FRAUD_FEATURES.names
HOUR = 3_600_000
DAY = 24 * HOUR


class Rows:
    """Scored rows in memory, in place of ClickHouse; `compared` is what was written."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.event_time_ms = np.zeros(0, np.int64)
        self.features = np.zeros((0, len(NAMES)))
        self.written: list[dict[str, Any]] = []
        self.quality: list[dict[str, Any]] = []
        self.frauds: list[dict[str, Any]] = []

    def add(self, event_time_ms: np.ndarray, features: np.ndarray) -> None:
        self.event_time_ms = np.concatenate([self.event_time_ms, event_time_ms])
        self.features = np.concatenate([self.features, features])

    def newest_event_ms(self) -> int | None:
        return int(self.event_time_ms.max()) if len(self.event_time_ms) else None

    def compared_until_ms(self, window_ms: int) -> int | None:
        return max((row["window_end"] for row in self.written), default=None)

    def counts(self, window_ms: int, first_ms: int, end_ms: int) -> list[WindowCount]:
        inside = (self.event_time_ms >= first_ms) & (self.event_time_ms < end_ms)
        windows, rows = np.unique(self.event_time_ms[inside] // window_ms, return_counts=True)
        return [
            WindowCount(int(window), self.version, int(count))
            for window, count in zip(windows, rows, strict=True)
        ]

    def sample(
        self, version: str, names: Sequence[str], window_ms: int, first: int, end: int, most: int
    ) -> WindowSample:
        inside = (self.event_time_ms >= first) & (self.event_time_ms < end)
        features = self.features[inside]
        return WindowSample(self.event_time_ms[inside] // window_ms, features[:, 0] / 100, features)

    def judged(self, first_ms: int, end_ms: int) -> list[dict[str, Any]]:
        return [row for row in self.frauds if first_ms <= row["event_time_ms"] < end_ms]

    def write_drift(self, rows: Sequence[dict[str, Any]]) -> None:
        self.written += rows

    def write_quality(self, rows: Sequence[dict[str, Any]]) -> None:
        self.quality += rows


def features(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 50, (rows, len(NAMES)))


def times(rows: int, first_ms: int) -> np.ndarray:
    return first_ms + np.arange(rows) * HOUR // rows


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path))


@pytest.fixture
def version(registry: Registry) -> str:
    known = features(2_000, 1)
    buffer = io.BytesIO()
    np.save(buffer, np.column_stack([known, known[:, 0] / 100]).astype(np.float32))
    folder = amount_model("watched", 0.01)
    folder.manifest.__dict__["reference"] = Reference(
        sha256=sha256_of(buffer.getvalue()), rows=2000
    )
    folder.extra["reference.npy"] = buffer.getvalue()
    return registry.register(folder)


def watch(
    rows: Rows, registry: Registry, told: list[dict[str, Any]], window_ms: int = HOUR
) -> DriftWatch:
    plan = DriftPlan(window_ms, HOUR // 12, 7 * DAY, DriftLimits(), most_windows=100)
    return DriftWatch(rows, registry, plan, told.extend)  # type: ignore[arg-type]


def test_a_window_is_compared_once_and_only_when_it_is_complete(
    registry: Registry, version: str
) -> None:
    rows, told = Rows(version), []
    looking = watch(rows, registry, told)
    assert looking.look().windows == 0
    rows.add(times(500, 100 * HOUR), features(500, 2))
    assert looking.look().windows == 0, "the hour is not over"
    rows.add(times(500, 101 * HOUR), features(500, 3))
    run = looking.look()
    assert run.windows == 1
    assert {row["window_start"] for row in rows.written} == {100 * HOUR}
    assert {row["feature"] for row in run.drift} == {*NAMES, "score"}
    assert not told
    assert looking.look().windows == 0
    rows.add(times(5, 102 * HOUR), features(5, 4))
    again = watch(rows, registry, told).look()
    assert {row["window_start"] for row in again.drift} == {101 * HOUR}, "after a restart too"


@pytest.mark.parametrize(
    ("window_ms", "alerting"),
    [(HOUR, set()), (DAY, {"night"}), (7 * DAY, {"night", "weekend"})],
)
def test_the_clock_alone_is_no_drift(
    registry: Registry, version: str, window_ms: int, alerting: set[str]
) -> None:
    """Calendar features are measured always and judged over whole periods of the calendar."""
    rows, told = Rows(version), []
    moved = features(500, 2)
    for name in ("night", "weekend"):
        moved[:, NAMES.index(name)] = 1.0
    rows.add(700 * DAY + np.arange(500) * 1_000, moved)
    rows.add(times(1, 700 * DAY + 2 * window_ms), features(1, 3))
    watch(rows, registry, told, window_ms).look()
    measured = {row["feature"] for row in rows.written if row["measure"] == "psi"}
    assert {"night", "weekend"} <= measured
    assert {row["feature"] for row in rows.written if row["breached"]} == alerting


def test_a_feature_that_moved_is_written_published_and_served(
    registry: Registry, version: str
) -> None:
    rows, told = Rows(version), []
    moved = features(500, 2)
    moved[:, 3] += 30
    rows.add(times(500, 100 * HOUR), moved)
    rows.add(times(1, 102 * HOUR), features(1, 3))
    run = watch(rows, registry, told).look()
    breached = {(row["feature"], row["measure"]) for row in rows.written if row["breached"]}
    assert breached == {(NAMES[3], "psi"), (NAMES[3], "ks")}
    assert [alert["attributes"]["window_start_ms"] for alert in told] == [str(100 * HOUR)]
    assert {reason["code"] for reason in told[0]["reasons"]} == {"drift_psi", "drift_ks"}

    metrics = DriftMetrics(0)
    try:
        metrics.publish(run.drift, run.quality)
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics").read().decode()
    finally:
        metrics.close()
    place = f'feature="{NAMES[3]}",measure="psi",model_version="{version}"'
    assert f"riskstream_drift_breached{{{place}}} 1.0" in text
    assert "riskstream_model_recall{" not in text, "nobody knows it without labels"


def test_an_hour_with_far_fewer_rows_than_the_same_hour_of_earlier_days_is_told(
    registry: Registry, version: str
) -> None:
    rows, told = Rows(version), []
    for day in range(3):
        rows.add(times(1000, day * DAY), features(1000, day))
    rows.add(times(300, 3 * DAY), features(300, 9))
    rows.add(times(1, 3 * DAY + 2 * HOUR), features(1, 3))
    watch(rows, registry, told).look()
    population = {
        row["window_start"]: row for row in rows.written if row["measure"] == "population"
    }
    assert population[3 * DAY]["value"] == pytest.approx(0.3)
    assert population[3 * DAY]["breached"]
    assert not population[2 * DAY]["breached"]


def test_a_dry_look_writes_and_publishes_nothing(registry: Registry, version: str) -> None:
    rows, told = Rows(version), []
    rows.add(times(500, 100 * HOUR), features(500, 2) + 30)
    rows.add(times(1, 102 * HOUR), features(1, 3))
    run = watch(rows, registry, told).look(write=False)
    assert run.alerts
    assert not told
    assert not rows.written


def test_a_model_without_a_reference_is_named_and_only_counted(registry: Registry) -> None:
    version = registry.register(amount_model("bare", 0.02))
    rows, told = Rows(version), []
    rows.add(times(500, 100 * HOUR), features(500, 2))
    rows.add(times(1, 102 * HOUR), features(1, 3))
    run = watch(rows, registry, told).look()
    assert run.without_reference == (version,)
    assert [(row["measure"], row["value"], row["breached"]) for row in run.drift] == [
        ("rows", 500.0, False)
    ]
    assert watch(rows, registry, told).look().windows == 0, "seen is seen"


def test_precision_and_recall_come_with_the_labels(registry: Registry, version: str) -> None:
    rows, told = Rows(version), []
    rows.add(times(500, 0), features(500, 2))
    rows.add(times(500, 10 * DAY), features(500, 3))
    rows.add(times(1, 10 * DAY + 2 * HOUR), features(1, 3))
    for number in range(10):
        rows.frauds.append(
            {
                "model_version": version,
                "event_time_ms": number,
                "flagged": number < 8,
                "is_fraud": number >= 2,
                "labelled_at_ms": 3 * DAY if number >= 2 else -1,
            }
        )
    (quality,) = watch(rows, registry, told).look().quality
    assert quality["events"] == 1001 - 1
    assert quality["mature"] == 500
    assert quality["precision"] == pytest.approx(6 / 8)
    assert quality["recall"] == pytest.approx(6 / 8)
