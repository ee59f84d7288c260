"""The window semantics written as plainly as possible: one list per key, everything recomputed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from jobs.windows.batch import Kind, RowFlag
from jobs.windows.durations import duration_ms
from jobs.windows.spec import FeatureSet, Field, WindowFeature

NEVER = -(1 << 62)


@dataclass
class Row:
    kind: Kind
    key: str | None
    time: int
    event_id: str | None
    fields: dict[str, Any] = field(default_factory=dict)
    is_fraud: bool = False
    revision: int = 0


@dataclass
class Event:
    time: int
    event_id: str | None
    values: dict[str, Any]
    fraud: bool = False
    revision: int | None = None


@dataclass
class Key:
    events: list[Event] = field(default_factory=list)
    newest: int = NEVER
    waiting: list[tuple[str, int, bool, int]] = field(default_factory=list)


class Reference:
    """One entity of a feature set over one shard, quadratic."""

    def __init__(self, feature_set: FeatureSet, entity: str) -> None:
        self.set = feature_set
        self.entity = feature_set.entity(entity)
        self.columns = feature_set.columns_of(entity)
        self.reach = max(c.window_ms + c.delay_ms for c in self.columns)
        self.horizon = self.reach + duration_ms(feature_set.allowed_lateness)
        self.fields = {f.name: f for f in feature_set.fields}
        self.filters = {f.name: f for f in feature_set.filters}
        self.labels = any(
            c.aggregation.filter and self.filters[c.aggregation.filter].field is None
            for c in self.columns
        )
        self.keys: dict[str, Key] = {}
        self.clock = NEVER

    def process(self, row: Row) -> tuple[list[float], RowFlag]:
        none = [math.nan] * len(self.columns)
        if row.kind is Kind.LABEL:
            return none, self._label(row) if self.labels else RowFlag(0)
        if row.kind is Kind.IGNORE:
            return none, RowFlag(0)
        event = Event(row.time, row.event_id, self._values(row))
        if row.key is None:
            return self._score([event], event, NEVER, NEVER), RowFlag.NULL_KEY
        key = self.keys.get(row.key, Key())
        cut = self._cut(key, row.time)
        tiles = self._tiled_until(key, cut)
        if row.time <= cut or row.time <= tiles:
            return self._score([event], event, NEVER, NEVER), RowFlag.TOO_LATE
        for other in key.events:
            in_sight = other.time > max(cut, tiles)
            if in_sight and row.event_id is not None and other.event_id == row.event_id:
                features = self._score(key.events, other, cut, tiles)
                return features, RowFlag.DUPLICATE | self._tiled(key, cut, tiles, other)
        self.keys[row.key] = key
        flags = RowFlag(0)
        if row.time < key.newest:
            flags |= RowFlag.LATE
            if row.time - self.reach < cut:
                flags |= RowFlag.TRUNCATED
        place = sum(other.time <= row.time for other in key.events)
        key.events.insert(place, event)
        clock = max(self.clock, row.time)
        for label in list(key.waiting):
            expired = label[3] <= clock - 2 * self.horizon
            if expired:
                key.waiting.remove(label)
            elif label[0] == row.event_id and label[3] > row.time - self.horizon:
                key.waiting.remove(label)
                event.revision, event.fraud = label[1], label[2]
        key.newest = max(key.newest, row.time)
        self.clock = clock
        tiles = self._tiled_until(key, cut)
        features = self._score(key.events, event, cut, tiles)
        return features, flags | self._tiled(key, cut, tiles, event)

    def _cut(self, key: Key, time: int) -> int:
        behind = max(self.clock, time) - self.horizon
        return max(key.newest, time, behind) - self.horizon

    def _tile(self, time: int) -> int:
        assert self.entity.hot_keys is not None
        width = duration_ms(self.entity.hot_keys.tile)
        return (time - 1) // width * width

    def _tiled_until(self, key: Key, cut: int) -> int:
        hot = self.entity.hot_keys
        if hot is None or len(key.events) <= hot.events:
            return NEVER
        left = [e for e in key.events if e.time > self._tile(cut)]
        return self._tile(left[-hot.events].time) if len(left) > hot.events else NEVER

    def _tiled(self, key: Key, cut: int, tiles: int, event: Event) -> RowFlag:
        if tiles == NEVER:
            return RowFlag(0)
        old = [e for e in key.events if self._tile(cut) < e.time <= tiles]
        reaches = any(max(event.time - c.delay_ms - c.window_ms, cut) < tiles for c in self.columns)
        return RowFlag.TILED if old and reaches else RowFlag(0)

    def _label(self, row: Row) -> RowFlag:
        if row.key is None:
            return RowFlag.NULL_KEY
        key = self.keys.get(row.key, Key())
        cut = self._cut(key, NEVER)
        cut = max(cut, self._tiled_until(key, cut))
        for event in key.events:
            if row.event_id is not None and event.event_id == row.event_id and event.time > cut:
                if event.revision is not None and row.revision <= event.revision:
                    return RowFlag.STALE_LABEL
                event.revision, event.fraud = row.revision, row.is_fraud
                return RowFlag(0)
        if row.event_id is None or row.time <= self.clock - 2 * self.horizon:
            return RowFlag.UNKNOWN_LABEL
        self.keys[row.key] = key
        for place, waiting in enumerate(key.waiting):
            if waiting[0] == row.event_id and waiting[3] > self.clock - 2 * self.horizon:
                if row.revision <= waiting[1]:
                    return RowFlag.UNKNOWN_LABEL | RowFlag.STALE_LABEL
                newest = max(row.time, waiting[3])
                key.waiting[place] = (row.event_id, row.revision, row.is_fraud, newest)
                return RowFlag.UNKNOWN_LABEL
        key.waiting.insert(0, (row.event_id, row.revision, row.is_fraud, row.time))
        return RowFlag.UNKNOWN_LABEL

    def _values(self, row: Row) -> dict[str, Any]:
        return {f.name: _stored(f, row.fields.get(f.source)) for f in self.set.fields}

    def _score(self, log: list[Event], event: Event, cut: int, tiles: int) -> list[float]:
        place = next(i for i, other in enumerate(log) if other is event)
        scores = []
        for column in self.columns:
            end = event.time - column.delay_ms
            start = max(end - column.window_ms, cut)
            if tiles != NEVER and start < tiles:
                if column.aggregation.tiles:
                    start = self._tile(start)
                    if column.delay_ms and end < tiles:
                        end = max(start, self._tile(end))
                else:
                    start = tiles
            candidates = log if column.delay_ms else log[: place + 1]
            window = [e for e in candidates if start < e.time <= end]
            scores.append(self._aggregate(column, window, event))
        return scores

    def _aggregate(self, column: WindowFeature, window: list[Event], event: Event) -> float:
        item, default = column.aggregation, column.aggregation.default
        name, operation = item.field, item.operation
        divisor = self.fields[name].divisor if name else 1
        chosen = [e for e in window if item.filter is None or self._passes(item.filter, e)]
        values = [e.values[name] for e in chosen if name and e.values[name] is not None]
        before = window if column.delay_ms else window[:-1]
        own = event.values[name] if name else None
        if operation == "count":
            return float(len(values) if name else len(chosen))
        if operation == "sum":
            return float(Fraction(sum(values), divisor))
        if operation == "mean":
            return float(Fraction(sum(values), len(values) * divisor)) if values else default
        if operation == "ratio":
            return len(chosen) / len(window) if window else default
        if operation in ("min", "max"):
            pick = min if operation == "min" else max
            return float(Fraction(pick(values), divisor)) if values else default
        if operation in ("std", "zscore"):
            if len(values) < 2 or (operation == "zscore" and own is None):
                return default
            mean = Fraction(sum(values), len(values))
            variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            if operation == "std":
                return math.sqrt(variance) / divisor
            return float(own - mean) / math.sqrt(variance) if variance else default
        if operation == "distinct":
            return float(len(set(values)))
        if operation == "last":
            known = [e.values[name] for e in before if e.values[name] is not None]
            return float(Fraction(known[-1], divisor)) if known else default
        if operation == "seconds_since_last":
            return (event.time - before[-1].time) / 1000 if before else default
        if operation == "seconds_since_first":
            return (event.time - window[0].time) / 1000
        if operation == "change_per_second":
            known = [e for e in before if e.values[name] is not None]
            if own is None or not known or known[0].time == event.time:
                return default
            elapsed = Fraction(event.time - known[0].time, 1000)
            return float(Fraction(own - known[0].values[name], divisor) / elapsed)
        if operation in ("decayed_count", "decayed_sum"):
            half_life = duration_ms(item.half_life or "")
            weighed = window if operation == "decayed_count" else chosen
            return math.fsum(
                2.0 ** (-(event.time - e.time) / half_life)
                * (1 if name is None else (e.values[name] or 0) / divisor)
                for e in weighed
            )
        if operation == "first_seen":
            if name is None:
                return 0.0 if before else 1.0
            return default if own is None else float(all(e.values[name] != own for e in before))
        placed = [e for e in before if _place(e) is not None]
        here = _place(event)
        if here is None or not placed:
            return default
        there = _place(placed[-1])
        assert there is not None
        kilometres = _arc(here, there)
        if operation == "distance":
            return kilometres
        return kilometres / (max(1000, event.time - placed[-1].time) / 3_600_000)

    def _passes(self, name: str, event: Event) -> bool:
        chosen = self.filters[name]
        if chosen.field is None:
            return event.fraud
        value = event.values[chosen.field]
        if value is None:
            return False
        if not isinstance(value, str):
            value = Fraction(value, self.fields[chosen.field].divisor)
        operand = chosen.operand
        return bool(
            {
                "==": lambda: value == operand,
                "!=": lambda: value != operand,
                "<": lambda: value < operand,
                "<=": lambda: value <= operand,
                ">": lambda: value > operand,
                ">=": lambda: value >= operand,
            }[chosen.operator]()
        )


def _stored(declared: Field, value: Any) -> Any:
    if value is None or declared.kind == "text":
        return value
    if declared.kind == "coordinate":
        limit = 90 if declared.name == "latitude" else 180
        return value if abs(value) <= limit else None
    return round(value * declared.multiplier)


def _place(event: Event) -> tuple[float, float] | None:
    latitude, longitude = event.values.get("latitude"), event.values.get("longitude")
    return None if latitude is None or longitude is None else (latitude, longitude)


def _arc(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the central angle by the vector formula, another than the kernel's."""
    first, second = (_unit(*point) for point in (a, b))
    cross = math.hypot(
        first[1] * second[2] - first[2] * second[1],
        first[2] * second[0] - first[0] * second[2],
        first[0] * second[1] - first[1] * second[0],
    )
    dot = sum(x * y for x, y in zip(first, second, strict=True))
    return 6371.0088 * math.atan2(cross, dot)


def _unit(latitude: float, longitude: float) -> tuple[float, float, float]:
    phi, theta = math.radians(latitude), math.radians(longitude)
    return math.cos(phi) * math.cos(theta), math.cos(phi) * math.sin(theta), math.sin(phi)
