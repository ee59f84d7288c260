"""Re-derive one feature of one scored event and name the events behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.windows.batch import EventBatch, Kind
from jobs.windows.errors import FeatureInputError
from jobs.windows.event_features import event_features
from jobs.windows.spec import FeatureSet, WindowFeature
from jobs.windows.store import ShardStore
from schemas.columns import NumberColumn, StringColumn

__all__ = [
    "RecordedEvent",
    "RecordedLabel",
    "Trace",
    "derive",
    "feature_named",
    "trace",
    "window_of",
]


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A scored event as it is on record.

    `order_ms` is when the job decided it: with partition and offset it gives the order in which the
    windows saw the events. `values` holds the source fields, None for null; `features` what was
    scored.
    """

    event_id: str
    event_time_ms: int
    order_ms: int
    values: Mapping[str, object]
    topic: str
    partition: int
    offset: int
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RecordedLabel:
    """A label as it is on record; `order_ms` is when it became known to the job."""

    event_id: str
    event_time_ms: int
    order_ms: int
    values: Mapping[str, object]
    is_fraud: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Trace:
    """One feature of one event: the window `(start_ms, end_ms]`, both values, and what is in it.

    `derived` comes from the recorded events, `recorded` is what was scored; `labelled` holds the
    ids of the events in the window that were known to be fraud. A feature of the event alone has
    no key.
    """

    feature: str
    event: RecordedEvent
    key: str | None
    start_ms: int
    end_ms: int
    derived: float
    recorded: float | None
    events: tuple[RecordedEvent, ...]
    labelled: frozenset[str]

    @property
    def equal(self) -> bool:
        """Whether both values are the same to the bit."""
        return self.recorded is not None and _same(self.derived, self.recorded)


def feature_named(feature_set: FeatureSet, name: str) -> WindowFeature | None:
    """Return the declaration of a window feature, or None for a feature of the event alone.

    Raises:
        FeatureInputError: when the set has no such feature.
    """
    if name in feature_set.event_features:
        return None
    for entity in feature_set.entities:
        for column in feature_set.columns_of(entity.name):
            if column.name == name:
                return column
    msg = f"no feature {name!r}; `riskstream features explain` lists the {len(feature_set.names)}"
    raise FeatureInputError(msg)


def window_of(column: WindowFeature, event_time_ms: int) -> tuple[int, int]:
    """Return start (not included) and end (included) of a feature's window, epoch ms."""
    end = event_time_ms - column.delay_ms
    return end - column.window_ms, end


def derive(
    feature_set: FeatureSet,
    entity: str,
    events: Sequence[RecordedEvent],
    labels: Sequence[RecordedLabel],
) -> NDArray[np.float64]:
    """Return the features of one entity, float64 (n, k), for events given in their order.

    A label stands before the first event that was decided after it became known.
    """
    key = feature_set.entity(entity).key
    rows: list[tuple[int, int, RecordedEvent | RecordedLabel]] = [
        (event.order_ms, 1, event) for event in events
    ]
    rows += [(label.order_ms, 0, label) for label in labels]
    # Stable: events of one millisecond keep the order in which they were given.
    rows.sort(key=lambda row: row[:2])
    records = [row[2] for row in rows]
    kind = np.array(
        [Kind.EVENT if isinstance(r, RecordedEvent) else Kind.LABEL for r in records], np.uint8
    )
    batch = EventBatch(
        kind,
        _texts([r.values.get(key) for r in records]),
        np.array([r.event_time_ms for r in records], np.int64),
        _texts([r.event_id for r in records]),
        _fields(feature_set, records),
    )
    done = ShardStore(feature_set, entity).process(batch)
    scored: NDArray[np.float64] = done.features[kind == Kind.EVENT]
    return scored


def trace(
    feature_set: FeatureSet,
    feature: str,
    event: RecordedEvent,
    history: Sequence[RecordedEvent],
    labels: Sequence[RecordedLabel],
) -> Trace:
    """Re-derive a feature of `event` from its key's recorded events and labels.

    `history` may hold the event itself and anything decided after it: both are passed over.
    """
    column = feature_named(feature_set, feature)
    recorded = event.features.get(feature)
    if column is None:
        position = feature_set.event_features.index(feature)
        values = event_features(
            feature_set,
            np.array([event.event_time_ms], np.int64),
            _fields(feature_set, [event]),
        )
        derived = float(values[0, position])
        time = event.event_time_ms
        return Trace(feature, event, None, time, time, derived, recorded, (event,), frozenset())
    place = (event.order_ms, event.partition, event.offset)
    before = sorted(
        (
            other
            for other in history
            if (other.order_ms, other.partition, other.offset) < place
            and other.event_id != event.event_id
        ),
        key=lambda other: (other.order_ms, other.partition, other.offset),
    )
    known = [label for label in labels if label.order_ms <= event.order_ms]
    matrix = derive(feature_set, column.entity, [*before, event], known)
    position = feature_set.names_of(column.entity).index(feature)
    start, end = window_of(column, event.event_time_ms)
    inside = [other for other in [*before, event] if start < other.event_time_ms <= end]
    inside.sort(key=lambda other: other.event_time_ms)
    verdicts: dict[str, RecordedLabel] = {}
    for label in known:
        held = verdicts.get(label.event_id)
        if held is None or label.revision > held.revision:
            verdicts[label.event_id] = label
    return Trace(
        feature,
        event,
        str(event.values.get(feature_set.entity(column.entity).key)),
        start,
        end,
        float(matrix[-1, position]),
        recorded,
        tuple(inside),
        frozenset(
            other.event_id
            for other in inside
            if other.event_id in verdicts and verdicts[other.event_id].is_fraud
        ),
    )


def _same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)


def _texts(values: Sequence[object]) -> StringColumn:
    return StringColumn.from_texts([None if v is None else str(v) for v in values])


def _fields(
    feature_set: FeatureSet, records: Sequence[RecordedEvent | RecordedLabel]
) -> dict[str, NumberColumn | StringColumn]:
    n = len(records)
    known = np.ones(n, np.bool_)
    labels = [r if isinstance(r, RecordedLabel) else None for r in records]
    fields: dict[str, NumberColumn | StringColumn] = {
        "is_fraud": NumberColumn(
            np.array([x is not None and x.is_fraud for x in labels], np.bool_), known
        ),
        "revision": NumberColumn(
            np.array([0 if x is None else x.revision for x in labels], np.int64), known
        ),
    }
    for field in feature_set.fields:
        values = [r.values.get(field.source) for r in records]
        if field.kind == "text":
            fields[field.source] = _texts(values)
            continue
        whole = all(isinstance(v, int) for v in values if v is not None)
        fields[field.source] = NumberColumn(
            np.array([0 if v is None else v for v in values], np.int64 if whole else np.float64),
            np.array([v is not None for v in values], np.bool_),
        )
    return fields
