"""Find the events behind a feature of one scored transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from connectors.tables import SCORED_VIEW
from jobs.windows.lineage import feature_named, window_of
from jobs.windows.spec import FeatureSet

__all__ = ["Rows", "events_behind", "scored_event"]

Rows = Callable[[str, Mapping[str, object]], list[dict[str, Any]]]
"""Runs a query with parameters."""

# What one can look through on a page; the counts beside it are of all events.
_MOST_EVENTS: Final = 200
_EVENT: Final = (
    "event_id, event_time, toString(decision) AS decision, ifNotFinite(score, -1) AS score, "
    "amount_minor / 100 AS event_amount, currency, customer_id, terminal_id, "
    "arrayStringConcat(rules_fired, ', ') AS reasons"
)


def scored_event(rows: Rows, features: FeatureSet, event_id: str) -> dict[str, Any] | None:
    """Return a scored transaction with its features, or None when there is none of that id.

    The newest decision counts where several records carried the id. Each feature comes with the
    meaning of it, its value (None: missing) and whether `events_behind` knows its events.
    """
    names = ", ".join(f"`{name}`" for name in features.names)
    found = rows(
        f"SELECT {_EVENT}, event_time_ms, merchant_id, country, toString(channel) AS channel, "  # noqa: S608
        "model_version, rule_set_version, feature_set_version, kafka_topic, kafka_partition, "
        f"kafka_offset, published_at, decided_at, {names} FROM {SCORED_VIEW} "
        "WHERE event_id = {event_id:String} ORDER BY decided_at_ms DESC LIMIT 1",
        {"event_id": event_id},
    )
    if not found:
        return None
    event = found[0]
    meanings = {entry["name"]: entry.get("meaning", "") for entry in features.explain()}
    event["features"] = [
        {
            "name": name,
            "value": event.pop(name),
            "meaning": meanings.get(name, ""),
            "has_events": feature_named(features, name) is not None,
        }
        for name in features.names
    ]
    return event


def events_behind(
    rows: Rows, features: FeatureSet, event_id: str, feature: str
) -> dict[str, Any] | None:
    """Return the scored transactions in the window of a feature, newest first, at most 200.

    None when there is no such event, or the feature looks at nothing but the event itself. `total`
    counts all of them. What the job saw may differ: it did not see events that came later, and it
    left duplicates out; `riskstream features trace` tells exactly.
    """
    column = feature_named(features, feature)
    if column is None:
        return None
    entity = features.entity(column.entity)
    found = rows(
        f"SELECT event_time_ms, {entity.key} AS entity FROM {SCORED_VIEW} "  # noqa: S608
        "WHERE event_id = {event_id:String} ORDER BY decided_at_ms DESC LIMIT 1",
        {"event_id": event_id},
    )
    if not found:
        return None
    after, until = window_of(column, int(found[0]["event_time_ms"]))
    parameters: dict[str, object] = {
        "entity": found[0]["entity"],
        "after": after,
        "until": until,
        "most": _MOST_EVENTS,
    }
    condition = (
        f"{entity.key} = {{entity:String}} AND event_time_ms > {{after:Int64}} "
        "AND event_time_ms <= {until:Int64}"
    )
    (counted,) = rows(
        f"SELECT uniqExact(event_id) AS total FROM {SCORED_VIEW} WHERE {condition}",  # noqa: S608
        parameters,
    )
    events = rows(
        f"SELECT {_EVENT}, "  # noqa: S608 - our own names
        "if(l.event_id = '', 'none', if(l.is_fraud, 'fraud', 'genuine')) AS label "
        f"FROM (SELECT * FROM {SCORED_VIEW} WHERE {condition} "
        "ORDER BY event_time_ms DESC, decided_at_ms DESC LIMIT 1 BY event_id "
        "LIMIT {most:UInt32}) AS s LEFT JOIN (SELECT event_id, is_fraud FROM labels) AS l "
        "ON s.event_id = l.event_id ORDER BY s.event_time_ms DESC",
        parameters,
    )
    return {
        "feature": feature,
        "entity": column.entity,
        "key": found[0]["entity"],
        "after_ms": after,
        "until_ms": until,
        "total": int(counted["total"]),
        "events": events,
    }
