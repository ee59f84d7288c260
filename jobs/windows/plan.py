"""Compile the declaration of one entity into the small integer tables that the kernels run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.windows._layout import PLAN_WIDTH
from jobs.windows.durations import duration_ms
from jobs.windows.raw import RawField, hash_text
from jobs.windows.spec import Aggregation, FeatureSet, Field

__all__ = ["EntityPlan", "compile_entity"]

_OPERATIONS: Final = (
    "count",
    "sum",
    "mean",
    "ratio",
    "min",
    "max",
    "std",
    "zscore",
    "distinct",
    "last",
    "seconds_since_last",
    "seconds_since_first",
    "change_per_second",
    "decayed_count",
    "decayed_sum",
    "first_seen",
    "first_seen_value",
    "distance",
    "speed",
)
"""In the order of the operation numbers of the kernels."""
_COMPARISONS: Final = ("==", "!=", "<", "<=", ">", ">=")
_COUNT, _SUM, _SQUARES = 0, 1, 2


@dataclass(frozen=True, slots=True)
class EntityPlan:
    """What the kernels need to know about one entity of a feature set.

    Tables, all int64 unless said: `header` see `_kernels`; `raws` (fields, 3) kind and columns;
    `measures` (m, 4) kind, field, filter, prefix column; `filters` (f, 4) type, field, comparison,
    text hash with `filter_operands` float64; `edges` (e) ages of the moments at which windows begin
    or end; `bounds` (b, 5) window, delay, may be tiled, edge of its begin and of its end (-1: now);
    `features` (k, 5) operation, bound and columns with `feature_numbers` float64 (k, 3) default,
    half life in ms, divisor.
    """

    entity: str
    raw_fields: tuple[RawField, ...]
    horizon_ms: int
    uses_labels: bool
    columns: int
    header: NDArray[np.int64]
    raws: NDArray[np.int64]
    measures: NDArray[np.int64]
    filters: NDArray[np.int64]
    filter_operands: NDArray[np.float64]
    edges: NDArray[np.int64]
    bounds: NDArray[np.int64]
    features: NDArray[np.int64]
    feature_numbers: NDArray[np.float64]


class _Builder:
    """Hands out columns of the log and numbers for filters, prefix sums and window bounds."""

    def __init__(self, feature_set: FeatureSet, entity: str) -> None:
        self.feature_set = feature_set
        self.declared = feature_set.entity(entity)
        sources = feature_set.sources_of(entity)
        self.fields = tuple(f for f in feature_set.fields if f.source in sources)
        self.columns = 2
        self.filters: list[str] = []
        self.measures: dict[tuple[int, int, int], int] = {}
        self.bounds: dict[tuple[int, int, int], int] = {}
        self.label_column = -1
        named = {a.filter for a in self.declared.features}
        if any(f.field is None for f in feature_set.filters if f.name in named):
            self.label_column = self.column()

    def column(self) -> int:
        self.columns += 1
        return self.columns - 1

    def field_number(self, name: str | None) -> int:
        return -1 if name is None else [f.name for f in self.fields].index(name)

    def filter_number(self, name: str | None) -> int:
        if name is None:
            return -1
        if name not in self.filters:
            self.filters.append(name)
        return self.filters.index(name)

    def measure(self, kind: int, field: int, filter_number: int) -> int:
        key = (kind, field, filter_number)
        if key not in self.measures:
            self.measures[key] = self.column()
        return self.measures[key]

    def bound(self, window_ms: int, delay_ms: int, tiles: bool) -> int:
        key = (window_ms, delay_ms, int(tiles))
        return self.bounds.setdefault(key, len(self.bounds))


def compile_entity(feature_set: FeatureSet, entity: str) -> EntityPlan:
    """Lay out the log of one entity and translate its features to operation numbers."""
    build = _Builder(feature_set, entity)
    hot = build.declared.hot_keys
    weight = -1 if hot is None else build.measure(_COUNT, -1, -1)
    raws = np.zeros((len(build.fields), 3), np.int64)
    for number, field in enumerate(build.fields):
        raws[number] = _raw_columns(build, number, field)
    features = np.full((len(feature_set.columns_of(entity)), 5), -1, np.int64)
    numbers = np.ones((len(features), 3), np.float64)
    for row, column in enumerate(feature_set.columns_of(entity)):
        item = column.aggregation
        bound = build.bound(column.window_ms, column.delay_ms, item.tiles)
        operation = item.operation
        if operation == "first_seen" and item.field is not None:
            operation = "first_seen_value"
        features[row, :2] = _OPERATIONS.index(operation), bound
        features[row, 2:] = _operands(build, item, raws, weight)
        half_life = 1 if item.half_life is None else duration_ms(item.half_life)
        divisor = 1
        if item.field is not None and operation != "count":
            divisor = build.fields[build.field_number(item.field)].divisor
        numbers[row] = item.default, half_life, divisor
    reach = max(w.window_ms + w.delay_ms for w in feature_set.columns_of(entity))
    horizon = reach + duration_ms(feature_set.allowed_lateness)
    header = np.full(PLAN_WIDTH, -1, np.int64)
    header[:7] = (
        build.columns,
        build.label_column,
        horizon,
        reach,
        0 if hot is None else hot.events,
        1 if hot is None else duration_ms(hot.tile),
        weight,
    )
    for number, field in enumerate(build.fields):
        if field.kind == "coordinate":
            header[7 if field.name == "latitude" else 8] = raws[number, 1]
    filters, operands = _filter_tables(build)
    edges, bounds = _edges_of(list(build.bounds))
    return EntityPlan(
        entity=entity,
        raw_fields=tuple(
            RawField(f.source, f.name if f.kind == "coordinate" else f.kind, f.multiplier)
            for f in build.fields
        ),
        horizon_ms=horizon,
        uses_labels=build.label_column >= 0,
        columns=build.columns,
        header=header,
        raws=raws,
        measures=np.array(
            [(*key, column) for key, column in build.measures.items()], np.int64
        ).reshape(-1, 4),
        filters=filters,
        filter_operands=operands,
        edges=edges,
        bounds=bounds,
        features=features,
        feature_numbers=numbers,
    )


def _edges_of(
    bounds: list[tuple[int, int, int]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Windows that share a moment, as the ends of all windows with one delay, share its search.
    edges: dict[int, int] = {}
    rows = []
    for window, delay, tiles in bounds:
        begin = edges.setdefault(delay + window, len(edges))
        end = edges.setdefault(delay, len(edges)) if delay else -1
        rows.append((window, delay, tiles, begin, end))
    return np.array(list(edges), np.int64), np.array(rows, np.int64).reshape(-1, 5)


def _raw_columns(build: _Builder, number: int, field: Field) -> tuple[int, int, int]:
    using = [a.operation for a in build.declared.features if a.field == field.name]
    if field.kind == "coordinate":
        needed = any(a.operation in ("distance", "speed") for a in build.declared.features)
        return 1, build.column() if needed else -1, -1
    if field.kind == "text":
        if "distinct" in using or "first_seen" in using:
            return 2, build.column(), build.column()
        return 2, -1, -1
    if not using:
        return 0, -1, -1
    return 0, build.measure(_SUM, number, -1), build.measure(_COUNT, number, -1)


def _operands(
    build: _Builder, item: Aggregation, raws: NDArray[np.int64], weight: int
) -> tuple[int, int, int]:
    field = build.field_number(item.field)
    chosen = build.filter_number(item.filter)
    if item.operation == "count":
        plain = field < 0 and chosen < 0
        return (weight if plain else build.measure(_COUNT, field, chosen)), -1, -1
    if item.operation == "ratio":
        return build.measure(_COUNT, -1, chosen), weight, -1
    if item.operation in ("sum", "mean"):
        return build.measure(_SUM, field, chosen), build.measure(_COUNT, field, chosen), -1
    if item.operation in ("std", "zscore"):
        squares = build.measure(_SQUARES, field, -1)
        return int(raws[field, 1]), int(raws[field, 2]), squares
    if field >= 0:
        return int(raws[field, 1]), int(raws[field, 2]), -1
    return 0, 0, -1


def _filter_tables(build: _Builder) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    table = np.full((len(build.filters), 4), -1, np.int64)
    operands = np.zeros(len(build.filters), np.float64)
    declared = {f.name: f for f in build.feature_set.filters}
    for row, name in enumerate(build.filters):
        item = declared[name]
        table[row, 0] = 0
        if item.field is None:
            continue
        number = build.field_number(item.field)
        table[row, :3] = 1, number, _COMPARISONS.index(item.operator)
        if isinstance(item.operand, str):
            table[row, 0], table[row, 3] = 2, hash_text(item.operand)
        else:
            operands[row] = item.operand * build.fields[number].divisor
    return table, operands
