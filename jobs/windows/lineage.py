"""Re-derive one feature of one scored event and name the events behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.windows.batch import EventBatch, Kind
from jobs.windows.errors import FeatureInputError
from jobs.windows.event_features import event_features
from jobs.windows.plan import compile_entity
from jobs.windows.spec import FeatureSet, WindowFeature
from jobs.windows.store import ShardStore
from schemas.columns import NumberColumn, StringColumn

__all__ = [
    "RecordedEvent",
    "RecordedLabel",
    "Trace",
    "derive",
    "feature_named",
    "ordered_by_partition",
    "trace",
    "window_of",
]


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A scored event as it is on record.

    `order` grows with every record that a shard of the deciding stage saw. `values` holds the
    source fields, None for null; `features` what was scored, nothing where another feature set did.
    """

    event_id: str
    event_time_ms: int
    order: int
    values: Mapping[str, object]
    topic: str
    partition: int
    offset: int
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RecordedLabel:
    """A label as it is on record; `order` as for events."""

    event_id: str
    event_time_ms: int
    order: int
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
    """Return the features of one entity, float64 (n, k), for recorded events in any order.

    The windows take events and labels in the order in which the job's windows saw them. For the
    first entity, whose key is that of the messages, that is the order of each partition, unless its
    features use labels; for all others it is the recorded `order`.
    """
    out = np.empty((len(events), len(feature_set.names_of(entity))), np.float64)
    for rows in _streams(feature_set, entity, events, labels):
        records = [record for _, _, record in rows]
        kind = np.array(
            [Kind.EVENT if isinstance(r, RecordedEvent) else Kind.LABEL for r in records], np.uint8
        )
        batch = EventBatch(
            kind,
            _texts([r.values.get(feature_set.entity(entity).key) for r in records]),
            np.array([r.event_time_ms for r in records], np.int64),
            _texts([r.event_id for r in records]),
            _fields(feature_set, records),
        )
        done = ShardStore(feature_set, entity).process(batch)
        events_at = np.array([position for _, position, _ in rows], np.int64)
        out[events_at[events_at >= 0]] = done.features[kind == Kind.EVENT]
    return out


def _streams(
    feature_set: FeatureSet,
    entity: str,
    events: Sequence[RecordedEvent],
    labels: Sequence[RecordedLabel],
) -> list[list[tuple[int, int, RecordedEvent | RecordedLabel]]]:
    """Return (order, position among the events or -1, record), stream by stream, in order."""
    streams: dict[tuple[str, int], list[tuple[int, int, RecordedEvent | RecordedLabel]]] = {}
    by_partition = ordered_by_partition(feature_set, entity)
    for position, event in enumerate(events):
        place = (event.topic, event.partition) if by_partition else ("", 0)
        order = event.offset if by_partition else event.order
        streams.setdefault(place, []).append((order, position, event))
    if not by_partition:
        streams.setdefault(("", 0), []).extend((label.order, -1, label) for label in labels)
    return [sorted(rows, key=lambda row: row[:2]) for rows in streams.values()]


def ordered_by_partition(feature_set: FeatureSet, entity: str) -> bool:
    """Return whether an entity's windows see each partition in its order and no labels at all."""
    first = feature_set.entities[0].name == entity
    return first and not compile_entity(feature_set, entity).uses_labels


def trace(
    feature_set: FeatureSet,
    feature: str,
    event: RecordedEvent,
    history: Sequence[RecordedEvent],
    labels: Sequence[RecordedLabel],
) -> Trace:
    """Re-derive a feature of `event` from its key's recorded events and labels.

    `history` may hold the event itself and anything seen after it: both are passed over.
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
    if ordered_by_partition(feature_set, column.entity):
        place = (event.topic, event.partition)
        before = [
            other
            for other in history
            if (other.topic, other.partition) == place and other.offset < event.offset
        ]
    else:
        before = [other for other in history if other.order < event.order]
    known = [label for label in labels if label.order < event.order]
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
