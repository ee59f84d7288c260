"""Fetch what the job recorded, for `features trace` and `features verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from connectors.clickhouse import ClickHouseClient
from connectors.readers import TopicReader
from connectors.settings import Settings
from connectors.tables import LABELS_TABLE, SCORED_VIEW
from jobs.windows.errors import FeatureInputError
from jobs.windows.lineage import RecordedEvent, RecordedLabel
from jobs.windows.spec import FeatureSet
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.registry import open_registry

__all__ = ["events_of_key", "labels_of_key", "recorded_event", "recorded_run"]

_PLACE = "kafka_topic, kafka_partition, kafka_offset"
# Rows that are older than column `seen_order` go by the clock, as far as it tells them apart.
_SEEN = "if(seen_order > 0, seen_order, decided_at_ms * 1048576) AS seen"
_LABEL_SEEN = (
    "if(seen_order > 0, seen_order, toUnixTimestamp64Milli(inserted_at) * 1048576) AS seen"
)


def recorded_event(
    client: ClickHouseClient, feature_set: FeatureSet, event_id: str
) -> RecordedEvent:
    """Return one scored event.

    Raises:
        FeatureInputError: when ClickHouse has no such event.
    """
    rows = client.rows(
        f"SELECT *, {_SEEN} FROM {SCORED_VIEW} "  # noqa: S608
        "WHERE event_id = {id:String} LIMIT 1",
        {"id": event_id},
    )
    if not rows:
        msg = f"tracing event {event_id!r}: ClickHouse has no such scored event"
        raise FeatureInputError(msg)
    return _event(rows[0], feature_set.names, rows[0])


def events_of_key(
    client: ClickHouseClient, feature_set: FeatureSet, key: str, value: str, since_ms: int
) -> list[RecordedEvent]:
    """Return the scored events of one customer or terminal after a time, features left out."""
    rows = client.rows(
        f"SELECT *, {_SEEN} FROM {SCORED_VIEW} "  # noqa: S608 - the key is a declared column name
        f"WHERE {key} = {{key:String}} AND event_time_ms > {{since:Int64}}",
        {"key": value, "since": since_ms},
    )
    if rows:
        missing = [f.source for f in feature_set.fields if f.source not in rows[0]]
        if missing:
            msg = f"ClickHouse keeps no column {', '.join(missing)}, which these features read"
            raise FeatureInputError(msg)
    return [_event(row, (), row) for row in rows]


def labels_of_key(
    client: ClickHouseClient, key: str, value: str, since_ms: int
) -> list[RecordedLabel]:
    """Return every revision of the labels on one key's events after a time."""
    rows = client.rows(
        f"SELECT *, {_LABEL_SEEN} FROM {LABELS_TABLE} FINAL "  # noqa: S608 - as above
        f"WHERE {key} = {{key:String}} AND event_time_ms > {{since:Int64}}",
        {"key": value, "since": since_ms},
    )
    return [_label(row, row["seen"]) for row in rows]


def recorded_run(
    settings: Settings,
    client: ClickHouseClient,
    feature_set: FeatureSet,
    progress: Callable[[int], None],
) -> tuple[list[RecordedEvent], list[RecordedLabel]]:
    """Return all events and labels: fields from Kafka, features and order from ClickHouse.

    Records that were not scored (dead letters, duplicates) are left out, as the windows did. Events
    that another feature set scored come without features: they count and are not compared.
    """
    names = ", ".join(f"`{name}`" for name in feature_set.names)
    scored = {
        _place(row): row
        for row in client.rows(
            f"SELECT {_PLACE}, event_id, event_time_ms, feature_set_version, "  # noqa: S608
            f"{_SEEN}, {names} FROM {SCORED_VIEW}"
        )
    }
    labelled = {
        _place(row): row["seen"]
        for row in client.rows(
            f"SELECT {_PLACE}, {_LABEL_SEEN} FROM {LABELS_TABLE} FINAL"  # noqa: S608
        )
    }
    events: list[RecordedEvent] = []
    labels: list[RecordedLabel] = []
    topics = settings.kafka.topics
    for place, value in _records(settings, topics.name("transactions"), "card_transaction", scored):
        row = scored[place]
        own = row["feature_set_version"] == feature_set.version
        events.append(_event(row, feature_set.names if own else (), value))
        progress(1)
    for place, value in _records(settings, topics.name("labels"), "label", labelled):
        labels.append(_label(value, labelled[place]))
        progress(1)
    return events, labels


def _records(
    settings: Settings, topic: str, name: str, wanted: Mapping[tuple[str, int, int], object]
) -> Iterable[tuple[tuple[str, int, int], dict[str, Any]]]:
    decoder = RecordDecoder(open_registry(settings.schemas), contract(name))
    reader = TopicReader(settings.kafka, topic)
    try:
        for record in reader.held_records():
            place = (record.topic, record.partition, record.offset)
            if place in wanted:
                yield place, decoder.decode(record.value)
    finally:
        reader.close()


def _place(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return str(row["kafka_topic"]), int(row["kafka_partition"]), int(row["kafka_offset"])


def _event(
    row: Mapping[str, Any], names: Sequence[str], values: Mapping[str, object]
) -> RecordedEvent:
    features = {n: float(row[n]) if row[n] is not None else float("nan") for n in names if n in row}
    topic, partition, offset = _place(row)
    return RecordedEvent(
        str(row["event_id"]),
        int(row["event_time_ms"]),
        int(row["seen"]),
        values,
        topic,
        partition,
        offset,
        features,
    )


def _label(row: Mapping[str, Any], order: int) -> RecordedLabel:
    return RecordedLabel(
        str(row["event_id"]),
        int(row["event_time_ms"]),
        int(order),
        row,
        bool(row["is_fraud"]),
        int(row["revision"] or 0),
    )
