"""Features of the event alone: no window, no state, the same code online and offline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from jobs.windows.durations import DAY_MS, HOUR_MS
from jobs.windows.spec import FeatureSet
from schemas.columns import NumberColumn, StringColumn

__all__ = ["event_features", "event_features_of"]

# 1970-01-01 was a Thursday; with Monday as 0 that is day 3.
_EPOCH_WEEKDAY = 3

EventFeatures = Callable[
    [NDArray[np.int64], Mapping[str, NumberColumn | StringColumn]], NDArray[np.float64]
]


def event_features(
    feature_set: FeatureSet,
    event_time_ms: NDArray[np.int64],
    columns: Mapping[str, NumberColumn | StringColumn],
) -> NDArray[np.float64]:
    """Return float64 (n, k) in the order of `feature_set.event_features`.

    Calendar features are in UTC. A null or missing value is 0.
    """
    out = np.zeros((len(event_time_ms), len(feature_set.event)), np.float64)
    fields = {field.name: field for field in feature_set.fields}
    for position, feature in enumerate(feature_set.event):
        if feature.operation == "weekend":
            weekday = (event_time_ms // DAY_MS + _EPOCH_WEEKDAY) % 7
            out[:, position] = weekday >= 5
        elif feature.operation == "night":
            out[:, position] = event_time_ms % DAY_MS // HOUR_MS <= 6
        else:
            field = fields[feature.field or ""]
            column = columns.get(field.source)
            if isinstance(column, NumberColumn):
                scale = field.divisor / field.multiplier
                out[:, position] = np.where(column.valid, column.values, 0) / scale
    return out


def event_features_of(feature_set: FeatureSet) -> EventFeatures:
    """Return `event_features` with the feature set bound, for a job's `open`."""

    def compute(
        event_time_ms: NDArray[np.int64], columns: Mapping[str, NumberColumn | StringColumn]
    ) -> NDArray[np.float64]:
        return event_features(feature_set, event_time_ms, columns)

    return compute
