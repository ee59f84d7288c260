"""How cost grows: a model of CPU by rate, fitted, checked, and extended to more cores.

    cores(rate) = floor + rate * event       while there is CPU to spare
    cores(rate) = rate * event_when_full     when there is none

With CPU to spare every tick of every shard makes a batch, however small: batches are the floor, and
the floor hardly grows with the rate. When there is none, batches wait and merge until their fixed
cost is lost in that of their events: what an event costs in a backlog is what decides how many a
core carries. A model says what it was not fitted on: each rate is predicted from the others, the
load at 80 % of the sustained rate from the backlog, and the errors are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.windows import feature_set, online
from jobs.windows.spec import Entity, FeatureSet, count, mean, money

__all__ = ["check_load", "fit_load", "predict", "sweep_declarations"]

USABLE: Final = 0.8
"""Share of the cores that a job may keep busy and still answer in time."""


def fit_load(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Fit cores = idle + event * rate on (rate, cores used); needs three points or more.

    The error of a point is that of the fit on all others, as a share of what was measured.
    """
    if len(points) < 3:
        msg = f"fitting the cost under load needs three rates or more, was {len(points)}"
        raise ValueError(msg)
    idle, event = _line(points)
    errors = []
    for left_out, (rate, cores) in enumerate(points):
        others = [point for at, point in enumerate(points) if at != left_out]
        a, b = _line(others)
        errors.append({"rate": rate, "cores": cores, "error": round((a + b * rate) / cores - 1, 3)})
    return {
        "idle_cores": round(idle, 4),
        "us_per_event": round(event * 1e6, 3),
        "left_out": errors,
    }


def check_load(drained: Mapping[str, Any], at_80_percent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cores at 80 % of the sustained rate, predicted from the backlog and measured."""
    predicted = at_80_percent["rate"] * drained["cpu_us_per_event"] / 1e6
    return {
        "rate": at_80_percent["rate"],
        "predicted_cores": round(predicted, 2),
        "measured_cores": at_80_percent["cores_used"],
        "error": round(predicted / at_80_percent["cores_used"] - 1, 3),
    }


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    rates = np.array([rate for rate, _ in points])
    cores = np.array([used for _, used in points])
    # By relative error: the smallest rate would otherwise not count at all.
    weight = 1 / cores
    design = np.stack([weight, rates * weight], axis=1)
    solution = np.linalg.lstsq(design, cores * weight, rcond=None)[0]
    return float(solution[0]), float(solution[1])


def predict(cores: int, us_per_event: float) -> dict[str, Any]:
    """Return what `cores` cores that do nothing else would carry, at two shards a core.

    `us_per_event` is the cost in a backlog. Not in it: the network between machines, a key that is
    hotter than a core, Kafka's, Redis's and ClickHouse's own cores and limits.
    """
    full = USABLE * cores * 1e6 / us_per_event
    return {
        "cores": cores,
        "shards": 2 * cores,
        "task_managers": max(1, cores // 2),
        "events_per_second": round(full),
        "events_per_second_per_core": round(full / cores),
    }


def sweep_declarations(batches: int = 40, per_key: int = 10) -> dict[str, Any]:
    """Return the windows' cost by number of features (to 200) and length of windows (to 90 d)."""
    lengths = ["1h", "6h", "1d", "7d", "30d", "90d"]
    features = []
    for wanted in (10, 50, 100, 200):
        windows = tuple(f"{hours}h" for hours in range(1, wanted // 2 + 1))
        declared = FeatureSet(
            name="wide",
            fields=(money("amount", "amount_minor"),),
            entities=(
                Entity("customer", "customer_id", (count(windows), mean("amount", windows))),
            ),
        )
        features.append(
            {"features": len(declared.names), **online(declared, 5_000, per_key, 500, batches)}
        )
    return {
        "features": features,
        "windows": [
            {"window": length, **online(feature_set(length), 5_000, per_key, 500, batches)}
            for length in lengths
        ],
    }
