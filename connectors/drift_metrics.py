"""Serve the newest comparison of `riskstream models drift --watch` to Prometheus.

=======================================  =========================================================
metric                                   meaning
=======================================  =========================================================
riskstream_drift                         by model_version, feature and measure: value of the newest
                                         window
riskstream_drift_breached                1 where that value is beyond its limit, else 0
riskstream_drift_window_end_seconds      by model_version: end of that window, event time
riskstream_model_precision               by model_version and `estimate` (mature, corrected)
riskstream_model_recall                  likewise
riskstream_drift_last_run_timestamp_seconds  when the last look was taken, new window or not
=======================================  =========================================================

All are gauges; what is not known (no labels yet) is not served.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prometheus_client import Gauge

from connectors.metrics_endpoint import MetricsEndpoint

__all__ = ["DriftMetrics"]


class DriftMetrics(MetricsEndpoint):
    """The endpoint with the newest comparison."""

    def __init__(
        self, port: int, address: str = "127.0.0.1", now: Callable[[], float] = time.time
    ) -> None:
        """Start serving; port 0 takes a free one, see `port`.

        Raises:
            OSError: when the port is taken.
        """
        super().__init__(
            ("riskstream_drift_last_run_timestamp_seconds", "When the last look was taken."),
            port,
            address,
            now,
        )
        registry = self.registry
        labels = ["model_version", "feature", "measure"]
        self._value = Gauge(
            "riskstream_drift",
            "Distance of the newest window from the model's reference.",
            labels,
            registry=registry,
        )
        self._breached = Gauge(
            "riskstream_drift_breached",
            "1 where it is beyond its limit.",
            labels,
            registry=registry,
        )
        self._end = Gauge(
            "riskstream_drift_window_end_seconds",
            "End of the newest window, event time.",
            ["model_version"],
            registry=registry,
        )
        self._quality = {
            name: Gauge(
                f"riskstream_model_{name}",
                f"Live {name} of the model's decisions.",
                ["model_version", "estimate"],
                registry=registry,
            )
            for name in ("precision", "recall")
        }

    def publish(
        self, drift: Sequence[Mapping[str, Any]], quality: Sequence[Mapping[str, Any]]
    ) -> None:
        """Serve these rows of tables `drift` and `model_quality`, the newest window of each model.

        A run without new windows leaves what was served.
        """
        newest = {row["model_version"]: 0 for row in drift}
        for row in drift:
            newest[row["model_version"]] = max(newest[row["model_version"]], row["window_end"])
        for version, end_ms in newest.items():
            self._end.labels(version).set(end_ms / 1000)
        for row in drift:
            if row["window_end"] == newest[row["model_version"]]:
                place = (row["model_version"], row["feature"], row["measure"])
                self._value.labels(*place).set(row["value"])
                self._breached.labels(*place).set(int(row["breached"]))
        for row in quality:
            for name, gauge in self._quality.items():
                for estimate, key in (("mature", name), ("corrected", f"{name}_corrected")):
                    if not math.isnan(row[key]):
                        gauge.labels(row["model_version"], estimate).set(row[key])
        self.ran()
