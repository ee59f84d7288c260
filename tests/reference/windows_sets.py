"""Feature sets and batches for tests of the windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.windows.batch import EventBatch
from jobs.windows.spec import (
    Entity,
    FeatureSet,
    HotKeys,
    coordinate,
    count,
    decayed_count,
    decayed_sum,
    distance,
    distinct,
    first_seen,
    labelled,
    last_value,
    maximum,
    mean,
    minimum,
    money,
    number,
    rate_of_change,
    ratio,
    since_first,
    since_last,
    speed,
    std,
    text,
    total,
    where,
    zscore,
)
from schemas.columns import NumberColumn, StringColumn
from tests.reference.windows_reference import Row

SHORT = ("5s", "20s")
FIELDS = (
    money("amount", source="amount_minor"),
    number("risk", decimals=3),
    text("shop", source="terminal_id"),
    coordinate("latitude"),
    coordinate("longitude"),
)
FILTERS = (labelled("fraud"), where("large", "amount", ">", 5), where("at_a", "shop", "==", "a"))
EVERY_AGGREGATION = (
    count(SHORT),
    count(SHORT, delay="5s"),
    count(SHORT, field="amount"),
    count(SHORT, field="shop"),
    count(SHORT, filter="large"),
    count(SHORT, filter="at_a"),
    total("amount", SHORT),
    total("amount", SHORT, filter="fraud", delay="5s"),
    mean("amount", SHORT, default=-1.0),
    mean("risk", SHORT, filter="fraud"),
    minimum("risk", SHORT, default=float("nan")),
    maximum("amount", SHORT, delay="5s"),
    std("amount", SHORT),
    std("risk", SHORT, delay="5s", default=-1.0),
    zscore("amount", SHORT),
    distinct("shop", SHORT),
    distinct("shop", SHORT, delay="5s"),
    ratio("fraud", SHORT, delay="5s"),
    ratio("fraud", SHORT, default=0.5),
    ratio("large", SHORT),
    last_value("amount", SHORT),
    last_value("risk", SHORT, delay="5s", default=-1.0),
    since_last(SHORT, default=-1.0),
    since_first(SHORT),
    rate_of_change("amount", SHORT),
    decayed_count("2s", SHORT),
    decayed_sum("amount", "2s", SHORT, delay="5s"),
    first_seen(SHORT),
    first_seen(SHORT, field="shop"),
    distance(SHORT, default=-1.0),
    speed(SHORT),
)
EVERYTHING = FeatureSet(
    name="everything",
    fields=FIELDS,
    filters=FILTERS,
    entities=(Entity("customer", "customer_id", EVERY_AGGREGATION),),
    allowed_lateness="5s",
)
TILED = FeatureSet(
    name="tiled",
    fields=FIELDS,
    filters=FILTERS,
    entities=(
        Entity(
            "customer",
            "customer_id",
            (
                count(SHORT, tiles=True),
                count(SHORT, filter="large", tiles=True),
                count(("20s",), delay="5s", tiles=True),
                total("amount", SHORT, tiles=True),
                mean("amount", ("20s",), delay="5s", tiles=True),
                ratio("large", SHORT, tiles=True),
                total("risk", SHORT),
                maximum("amount", SHORT),
                distinct("shop", SHORT),
                first_seen(("20s",), field="shop"),
            ),
            hot_keys=HotKeys(events=64, tile="3s"),
        ),
    ),
    allowed_lateness="5s",
)


def batch_of(rows: Sequence[Row]) -> EventBatch:
    """Return the rows as a batch of columns."""
    return EventBatch(
        kind=np.array([row.kind for row in rows], np.uint8),
        key=StringColumn.from_texts([row.key for row in rows]),
        event_time_ms=np.array([row.time for row in rows], np.int64),
        event_id=StringColumn.from_texts([row.event_id for row in rows]),
        fields={
            "amount_minor": _numbers(rows, "amount_minor", np.int64),
            "risk": _numbers(rows, "risk", np.float64),
            "terminal_id": StringColumn.from_texts([r.fields.get("terminal_id") for r in rows]),
            "latitude": _numbers(rows, "latitude", np.float64),
            "longitude": _numbers(rows, "longitude", np.float64),
            "is_fraud": NumberColumn(
                np.array([row.is_fraud for row in rows], np.bool_), np.ones(len(rows), np.bool_)
            ),
            "revision": NumberColumn(
                np.array([row.revision for row in rows], np.int32), np.ones(len(rows), np.bool_)
            ),
        },
    )


def _numbers(rows: Sequence[Row], name: str, kind: type) -> NumberColumn:
    values = [row.fields.get(name) for row in rows]
    return NumberColumn(
        np.array([0 if v is None else v for v in values], kind),
        np.array([v is not None for v in values], np.bool_),
    )
