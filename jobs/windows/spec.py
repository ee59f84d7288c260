"""The feature language: a feature set is declared once and means the same online and offline.

A declaration reads top to bottom: the fields that events carry, the filters over them, then per
entity the aggregations, each over one or more windows::

    FeatureSet(
        name="example",
        fields=(money("amount", source="amount_minor"),),
        entities=(
            Entity("customer", key="customer_id", features=(
                count(windows=("1d", "7d")),
                mean("amount", windows=("7d",)),
            )),
        ),
    )

gives `customer_count_1d`, `customer_count_7d` and `customer_amount_mean_7d`. A window `w` at an
event of time t covers `(t - w, t]` and includes the event itself; with a delay d it covers `(t - d
- w, t - d]`. Nothing here computes: `plan` compiles a declaration, `store` runs it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Final

from jobs.windows._explain import meaning
from jobs.windows._validate import mistakes_in
from jobs.windows.durations import duration_ms
from jobs.windows.errors import FeatureDeclarationError

__all__ = [
    "SEMANTICS_VERSION",
    "Aggregation",
    "Entity",
    "EventFeature",
    "FeatureSet",
    "Field",
    "Filter",
    "HotKeys",
    "WindowFeature",
    "amount",
    "coordinate",
    "count",
    "decayed_count",
    "decayed_sum",
    "distance",
    "distinct",
    "first_seen",
    "labelled",
    "last_value",
    "maximum",
    "mean",
    "minimum",
    "money",
    "night",
    "number",
    "rate_of_change",
    "ratio",
    "since_first",
    "since_last",
    "speed",
    "std",
    "text",
    "total",
    "value",
    "weekend",
    "where",
    "zscore",
]

SEMANTICS_VERSION: Final = 1
"""Goes into every feature-set version; raised when the meaning of any aggregation changes."""


@dataclass(frozen=True, slots=True)
class Field:
    """One source field: `kind` is integer, coordinate or text.

    A numeric field is held as the integer `round(source * multiplier)` and leaves as that integer
    divided by `divisor`, so sums never drift.
    """

    name: str
    source: str
    kind: str
    multiplier: int = 1
    divisor: int = 1


@dataclass(frozen=True, slots=True)
class Filter:
    """A named condition on one field; field `None` is the fraud label. A null field fails."""

    name: str
    field: str | None
    operator: str = "=="
    operand: int | float | str = 1


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One aggregation over several windows; build it with `count`, `mean` and the like."""

    operation: str
    windows: tuple[str, ...]
    field: str | None = None
    delay: str | None = None
    filter: str | None = None
    default: float = 0.0
    half_life: str | None = None
    tiles: bool = False


@dataclass(frozen=True, slots=True)
class HotKeys:
    """When a key counts as hot: it holds more than `events` events.

    Events older than the `events` newest ones are then kept as tiles of width `tile`. Aggregations
    declared with `tiles=True` round the old end of a window down to a tile; all others see the
    newest events only. Rows concerned carry `RowFlag.TILED`.
    """

    events: int
    tile: str


@dataclass(frozen=True, slots=True)
class Entity:
    """One keyed stage: the key's source field and the aggregations over the key's own events."""

    name: str
    key: str
    features: tuple[Aggregation, ...]
    hot_keys: HotKeys | None = None


@dataclass(frozen=True, slots=True)
class EventFeature:
    """A feature of the event alone: `value` of a field, `weekend` or `night` (UTC)."""

    name: str
    operation: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class WindowFeature:
    """One column of the model's input: an aggregation over one window, named mechanically."""

    name: str
    entity: str
    aggregation: Aggregation
    window_ms: int
    delay_ms: int


@dataclass(frozen=True)
class FeatureSet:
    """All features of a job, validated when declared.

    `allowed_lateness` is how late an event may be, against the newest of its key, and still have
    every window exact; it is memory, because that much more than the longest window is kept.

    Raises:
        FeatureDeclarationError: with every mistake in one message.
    """

    name: str
    fields: tuple[Field, ...]
    entities: tuple[Entity, ...]
    event: tuple[EventFeature, ...] = ()
    filters: tuple[Filter, ...] = ()
    allowed_lateness: str = "1d"
    _by_entity: dict[str, tuple[WindowFeature, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        """Refuse a declaration with mistakes, then name every column."""
        mistakes = mistakes_in(self)
        if not mistakes:
            for entity in self.entities:
                self._by_entity[entity.name] = _columns_of(entity)
            seen: set[str] = set()
            for name in self.names:
                if name in seen:
                    mistakes.append(f"feature {name!r} is declared twice")
                seen.add(name)
        if mistakes:
            listed = "\n".join(f"  - {mistake}" for mistake in mistakes)
            msg = f"feature set {self.name!r} has {len(mistakes)} mistake(s):\n{listed}"
            raise FeatureDeclarationError(msg)

    @cached_property
    def event_features(self) -> tuple[str, ...]:
        """Names of the features of the event alone."""
        return tuple(feature.name for feature in self.event)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All model inputs in order: event features, then entity by entity."""
        windows = (f.name for entity in self.entities for f in self._by_entity[entity.name])
        return (*self.event_features, *windows)

    @cached_property
    def version(self) -> str:
        """Twelve hexadecimal digits that change whenever the meaning of any feature may."""
        declared = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        declared["fields"] = [asdict(f) for f in self.fields]
        declared["filters"] = [asdict(f) for f in self.filters]
        declared["event"] = [asdict(f) for f in self.event]
        declared["entities"] = [asdict(f) for f in self.entities]
        declared["semantics"] = SEMANTICS_VERSION
        return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:12]

    def entity(self, name: str) -> Entity:
        """Return one entity by name; KeyError names the known ones."""
        for entity in self.entities:
            if entity.name == name:
                return entity
        msg = f"no entity {name!r}; declared are {', '.join(e.name for e in self.entities)}"
        raise KeyError(msg)

    def names_of(self, entity: str) -> tuple[str, ...]:
        """Return the feature names of one entity, in the order of `Processed.features`."""
        return tuple(feature.name for feature in self.columns_of(entity))

    def columns_of(self, entity: str) -> tuple[WindowFeature, ...]:
        """Return the window features of one entity in order."""
        return self._by_entity[self.entity(entity).name]

    def sources_of(self, entity: str) -> tuple[str, ...]:
        """Return the source fields that one entity's store reads, key excluded, in order."""
        used = {a.field for a in self.entity(entity).features}
        named = {a.filter for a in self.entity(entity).features}
        used |= {f.field for f in self.filters if f.name in named}
        if any(a.operation in ("distance", "speed") for a in self.entity(entity).features):
            used |= {f.name for f in self.fields if f.kind == "coordinate"}
        return tuple(f.source for f in self.fields if f.name in used)

    def explain(self) -> list[dict[str, str]]:
        """Return one row per feature, in order: name, entity, operation, window, meaning."""
        return meaning(self)


def _columns_of(entity: Entity) -> tuple[WindowFeature, ...]:
    columns = []
    for aggregation in entity.features:
        delay = aggregation.delay
        for window in aggregation.windows:
            parts = [entity.name]
            if aggregation.field is not None:
                parts.append(aggregation.field)
            if aggregation.filter is not None:
                parts.append(aggregation.filter)
            parts.append("rate" if aggregation.operation == "ratio" else aggregation.operation)
            if aggregation.half_life is not None:
                parts.append(f"half_{aggregation.half_life}")
            parts.append(window)
            if delay is not None:
                parts.append(f"delay_{delay}")
            name = "_".join(parts)
            delay_ms = 0 if delay is None else duration_ms(delay)
            columns.append(
                WindowFeature(name, entity.name, aggregation, duration_ms(window), delay_ms)
            )
    return tuple(columns)


# The words of the language. Each returns a plain declaration; FeatureSet checks them together.


def money(name: str, source: str) -> Field:
    """Declare an amount: int64 minor units in the event, major units in features."""
    return Field(name, source, "integer", 1, 100)


def number(name: str, source: str | None = None, decimals: int = 0) -> Field:
    """Declare a number kept exactly to `decimals` places (half to even); beyond 2^53 it is null."""
    return Field(name, source or name, "integer", 10**decimals, 10**decimals)


def coordinate(name: str, source: str | None = None) -> Field:
    """Declare `latitude` or `longitude` in degrees; values off the globe are null."""
    return Field(name, source or name, "coordinate")


def text(name: str, source: str | None = None) -> Field:
    """Declare a string, compared by a 64-bit hash of its bytes."""
    return Field(name, source or name, "text")


def labelled(name: str) -> Filter:
    """Declare the filter of events labelled fraud; an event without a label is not."""
    return Filter(name, None)


def where(name: str, field: str, operator: str, operand: float | str) -> Filter:
    """Declare a filter such as `where("large", "amount", ">", 500)`, in feature units."""
    return Filter(name, field, operator, operand)


def value(field: str) -> EventFeature:
    """Declare the event's own value of a numeric field; null is 0."""
    return EventFeature(field, "value", field)


amount = value
"""Read better where the field is money: `amount("amount")`."""


def weekend(name: str = "weekend") -> EventFeature:
    """Declare 1 on Saturday and Sunday in UTC, else 0."""
    return EventFeature(name, "weekend")


def night(name: str = "night") -> EventFeature:
    """Declare 1 in hours 0 to 6 in UTC (until 06:59:59.999), else 0."""
    return EventFeature(name, "night")


def count(
    windows: tuple[str, ...],
    *,
    field: str | None = None,
    filter: str | None = None,
    delay: str | None = None,
    tiles: bool = False,
) -> Aggregation:
    """Count events, or the events with a value in `field`, optionally those passing a filter."""
    return Aggregation("count", windows, field, delay, filter, 0.0, None, tiles)


def total(
    field: str,
    windows: tuple[str, ...],
    *,
    filter: str | None = None,
    delay: str | None = None,
    tiles: bool = False,
) -> Aggregation:
    """Sum a numeric field exactly; null adds nothing."""
    return Aggregation("sum", windows, field, delay, filter, 0.0, None, tiles)


def mean(
    field: str,
    windows: tuple[str, ...],
    *,
    filter: str | None = None,
    delay: str | None = None,
    default: float = 0.0,
    tiles: bool = False,
) -> Aggregation:
    """Average the non-null values."""
    return Aggregation("mean", windows, field, delay, filter, default, None, tiles)


def _over_field(
    operation: str, field: str | None, windows: tuple[str, ...], delay: str | None, default: float
) -> Aggregation:
    return Aggregation(operation, windows, field, delay, None, default)


def minimum(
    field: str, windows: tuple[str, ...], *, delay: str | None = None, default: float = 0.0
) -> Aggregation:
    """Take the smallest non-null value."""
    return _over_field("min", field, windows, delay, default)


def maximum(
    field: str, windows: tuple[str, ...], *, delay: str | None = None, default: float = 0.0
) -> Aggregation:
    """Take the largest non-null value."""
    return _over_field("max", field, windows, delay, default)


def std(
    field: str, windows: tuple[str, ...], *, delay: str | None = None, default: float = 0.0
) -> Aggregation:
    """Take the sample standard deviation (n - 1); fewer than two values give the default."""
    return _over_field("std", field, windows, delay, default)


def zscore(field: str, windows: tuple[str, ...], *, default: float = 0.0) -> Aggregation:
    """Take (value - mean) / std of the event against its window, the event included."""
    return _over_field("zscore", field, windows, None, default)


def distinct(field: str, windows: tuple[str, ...], *, delay: str | None = None) -> Aggregation:
    """Count the different non-null values of a text field."""
    return _over_field("distinct", field, windows, delay, 0.0)


def ratio(
    filter: str,
    windows: tuple[str, ...],
    *,
    delay: str | None = None,
    default: float = 0.0,
    tiles: bool = False,
) -> Aggregation:
    """Divide the events that pass a filter by all events; named `..._rate_...`."""
    return Aggregation("ratio", windows, None, delay, filter, default, None, tiles)


def last_value(
    field: str, windows: tuple[str, ...], *, delay: str | None = None, default: float = 0.0
) -> Aggregation:
    """Take the newest non-null value among the events before this one."""
    return _over_field("last", field, windows, delay, default)


def since_last(windows: tuple[str, ...], *, default: float = 0.0) -> Aggregation:
    """Take the seconds since the previous event of the key."""
    return _over_field("seconds_since_last", None, windows, None, default)


def since_first(windows: tuple[str, ...], *, default: float = 0.0) -> Aggregation:
    """Take the seconds since the first event of the window."""
    return _over_field("seconds_since_first", None, windows, None, default)


def rate_of_change(field: str, windows: tuple[str, ...], *, default: float = 0.0) -> Aggregation:
    """Take (value - first non-null value in the window) per second elapsed between the two."""
    return _over_field("change_per_second", field, windows, None, default)


def decayed_count(
    half_life: str, windows: tuple[str, ...], *, delay: str | None = None
) -> Aggregation:
    """Count events, each weighing 2^(-age / half_life)."""
    return Aggregation("decayed_count", windows, None, delay, None, 0.0, half_life)


def decayed_sum(
    field: str, half_life: str, windows: tuple[str, ...], *, delay: str | None = None
) -> Aggregation:
    """Sum a field, each value weighing 2^(-age / half_life)."""
    return Aggregation("decayed_sum", windows, field, delay, None, 0.0, half_life)


def first_seen(windows: tuple[str, ...], *, field: str | None = None) -> Aggregation:
    """Give 1 when the key (or this value of a text field) did not occur before in the window."""
    return _over_field("first_seen", field, windows, None, 0.0)


def distance(windows: tuple[str, ...], *, default: float = 0.0) -> Aggregation:
    """Take the great-circle kilometres from the previous event that has coordinates."""
    return _over_field("distance", None, windows, None, default)


def speed(windows: tuple[str, ...], *, default: float = 0.0) -> Aggregation:
    """Take the implied speed in km/h of that distance; less than a second counts as a second."""
    return _over_field("speed", None, windows, None, default)
