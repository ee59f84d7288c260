"""Hold what was scored online against the same events computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.windows.event_features import event_features
from jobs.windows.lineage import RecordedEvent, RecordedLabel, derive
from jobs.windows.spec import FeatureSet
from schemas.columns import NumberColumn

__all__ = ["Difference", "differences"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One feature of one event that is not equal to the bit; `online` None was not recorded."""

    event_id: str
    topic: str
    partition: int
    offset: int
    feature: str
    online: float | None
    offline: float


def differences(
    feature_set: FeatureSet,
    events: Sequence[RecordedEvent],
    labels: Sequence[RecordedLabel],
) -> list[Difference]:
    """Return every difference, in the order in which the events were seen.

    All events of each key must be there, from the first one that any window reaches: what is
    missing shows as a difference. Events without recorded features count and are not compared.
    """
    ordered = sorted(events, key=lambda event: (event.order, event.topic, event.partition))
    columns = [_event_only(feature_set, ordered)] if feature_set.event else []
    columns += [derive(feature_set, e.name, ordered, labels) for e in feature_set.entities]
    offline = np.concatenate(columns, axis=1)
    found = []
    for event, row in zip(ordered, offline, strict=True):
        if not event.features:
            continue
        for name, value in zip(feature_set.names, row.tolist(), strict=True):
            online = event.features.get(name)
            both_nan = online is not None and np.isnan(online) and np.isnan(value)
            if online != value and not both_nan:
                place = (event.topic, event.partition, event.offset)
                found.append(Difference(event.event_id, *place, name, online, value))
    return found


def _event_only(
    feature_set: FeatureSet, events: Sequence[RecordedEvent]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    fields = {}
    for field in feature_set.fields:
        if field.kind == "text":
            continue
        values = [event.values.get(field.source) for event in events]
        fields[field.source] = NumberColumn(
            np.array([0 if v is None else v for v in values]),
            np.array([v is not None for v in values], np.bool_),
        )
    times = np.array([event.event_time_ms for event in events], np.int64)
    return event_features(feature_set, times, fields)
