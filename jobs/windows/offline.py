"""The same features over files: for training, backfill and proofs.

A file is read in its order, as if it were the topic; labels join the stream when they would have
been known: `label_delay` after their event, before the first event that reaches that time. The
same stores and kernels as online do the rest, so equality is not a matter of care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.windows.batch import EventBatch, Kind, Processed
from jobs.windows.durations import DAY_MS
from jobs.windows.errors import FeatureInputError
from jobs.windows.event_features import event_features
from jobs.windows.spec import FeatureSet
from jobs.windows.store import ShardStore
from jobs.windows.tables import (
    names_in_file,
    normalise,
    number_column,
    read_chunks,
    string_column,
)
from schemas.columns import NumberColumn, StringColumn

__all__ = [
    "DEFAULT_LABEL_DELAY_DAYS",
    "FeatureTable",
    "OfflineRun",
    "build_features",
    "features_of",
]

_Number = TypeVar("_Number", bound=np.generic)
"""What a joined column holds."""
DEFAULT_LABEL_DELAY_DAYS: Final = 7.0
"""How long after its event a label is known, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features of recorded events in file order: float64 (n, k), k named by `names`.

    `keys` holds the key of each entity as Arrow strings, `is_fraud` is None when the file has no
    labels, `amount_minor` is None when it has no amounts. `flags` is uint8 of `RowFlag`, all
    entities together.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.float64]
    flags: NDArray[np.uint8]
    event_id: pa.Array
    event_time_ms: NDArray[np.int64]
    keys: Mapping[str, pa.Array]
    amount_minor: NDArray[np.int64] | None
    is_fraud: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def customer_id(self) -> pa.Array:
        """The customer of each event."""
        return self.keys["customer_id"]

    @property
    def terminal_id(self) -> pa.Array:
        """The terminal of each event."""
        return self.keys["terminal_id"]

    def to_arrow(self) -> pa.Table:
        """Return one table: id, time, keys, amount and label where known, then every feature."""
        columns: dict[str, object] = {
            "event_id": self.event_id,
            "event_time_ms": self.event_time_ms,
            **self.keys,
        }
        if self.amount_minor is not None:
            columns["amount_minor"] = self.amount_minor
        if self.is_fraud is not None:
            columns["is_fraud"] = self.is_fraud
        columns["flags"] = self.flags
        for position, name in enumerate(self.names):
            columns[name] = np.ascontiguousarray(self.matrix[:, position])
        return pa.table(columns)


class OfflineRun:
    """Features of a stream of recorded events, one chunk after another; chunk cuts cannot be seen.

    Memory is bounded by what the windows hold, the labels that are not yet known and one chunk.
    """

    def __init__(self, feature_set: FeatureSet, label_delay_ms: int) -> None:
        self.feature_set = feature_set
        self.stores = [ShardStore(feature_set, entity.name) for entity in feature_set.entities]
        self._delay_ms = label_delay_ms
        self._newest_ms = -(1 << 62)
        self._waiting: pa.Table | None = None
        self._pool = ThreadPoolExecutor(len(self.stores))

    def process(self, columns: Mapping[str, pa.Array]) -> FeatureTable:
        """Return the features of one chunk; `columns` bear our names and units."""
        keys = {entity.key: columns[entity.key] for entity in self.feature_set.entities}
        times = columns["event_time_ms"].to_numpy(zero_copy_only=False).astype(np.int64)
        n = len(times)
        fields = self._fields(columns)
        fraud = columns.get("is_fraud")
        labels, label_at = self._labels(columns, keys, times, fraud)
        # A label stands just before the first event that may know it.
        position = np.concatenate([2 * label_at, 2 * np.arange(n) + 1])
        order = np.argsort(position, kind="stable")
        ids = _stack(labels, "event_id", columns["event_id"], order)
        kind = np.concatenate([np.full(len(label_at), Kind.LABEL), np.full(n, Kind.EVENT)]).astype(
            np.uint8
        )[order]
        label_times = _numbers(labels, "known_ms", len(label_at))
        all_times = np.concatenate([label_times, times])[order]
        all_fields = {
            name: _padded(column, len(label_at), order) for name, column in fields.items()
        }
        is_fraud = np.concatenate([np.ones(len(label_at), np.int64), np.zeros(n, np.int64)])[order]
        all_fields["is_fraud"] = NumberColumn(is_fraud, np.ones(len(order), np.bool_))
        batches = []
        for entity in self.feature_set.entities:
            key = _stack(labels, entity.key, keys[entity.key], order)
            batches.append(EventBatch(kind, key, all_times, ids, all_fields))
        events = kind == Kind.EVENT
        done = list(self._pool.map(_process_one, self.stores, batches))
        matrix = np.concatenate(
            [event_features(self.feature_set, times, fields)]
            + [processed.features[events] for processed in done],
            axis=1,
        )
        flags = np.zeros(n, np.uint8)
        for processed in done:
            flags |= processed.flags[events]
        amount = columns.get("amount_minor")
        return FeatureTable(
            self.feature_set.names,
            matrix,
            flags,
            columns["event_id"],
            times,
            keys,
            None if amount is None else np.rint(number_column(amount).values).astype(np.int64),
            None if fraud is None else number_column(fraud).values.astype(np.bool_),
        )

    def _fields(self, columns: Mapping[str, pa.Array]) -> dict[str, NumberColumn | StringColumn]:
        fields: dict[str, NumberColumn | StringColumn] = {}
        for field in self.feature_set.fields:
            column = columns.get(field.source)
            if column is not None:
                text = field.kind == "text"
                fields[field.source] = string_column(column) if text else number_column(column)
        return fields

    def _labels(
        self,
        columns: Mapping[str, pa.Array],
        keys: Mapping[str, pa.Array],
        times: NDArray[np.int64],
        fraud: pa.Array | None,
    ) -> tuple[pa.Table | None, NDArray[np.int64]]:
        reached = np.maximum.accumulate(np.maximum(times, self._newest_ms))
        n = len(times)
        if n:
            self._newest_ms = int(reached[-1])
        parts, places = [], []
        if self._waiting is not None and len(self._waiting):
            parts.append(self._waiting)
            known = self._waiting.column("known_ms").to_numpy()
            places.append(np.searchsorted(reached, known, "left"))
        if fraud is not None:
            # Only fraud changes a feature: an event without a label counts as innocent.
            rows = np.flatnonzero(number_column(fraud).values)
            known = times[rows] + self._delay_ms
            taken = {name: column.take(pa.array(rows)) for name, column in keys.items()}
            parts.append(
                pa.table(
                    {"event_id": columns["event_id"].take(pa.array(rows)), "known_ms": known}
                    | taken
                )
            )
            places.append(np.maximum(np.searchsorted(reached, known, "left"), rows + 1))
        if not parts:
            return None, np.zeros(0, np.int64)
        table, place = pa.concat_tables(parts), np.concatenate(places)
        due = place < n
        self._waiting = table.filter(pa.array(~due)).combine_chunks()
        return table.filter(pa.array(due)), place[due]


def build_features(
    path: Path,
    feature_set: FeatureSet,
    label_delay_days: float = DEFAULT_LABEL_DELAY_DAYS,
    renamed: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> FeatureTable:
    """Return the features of a whole file in memory, in file order.

    Raises:
        FeatureInputError: when the file lacks an id, a time or a key.
    """
    parts = []
    for table in features_of(path, feature_set, label_delay_days, renamed or {}):
        parts.append(table)
        if progress is not None:
            progress(len(table))
    if not parts:
        msg = f"building features: {str(path)!r} holds no rows"
        raise FeatureInputError(msg)
    first = parts[0]
    return FeatureTable(
        first.names,
        np.concatenate([p.matrix for p in parts]),
        np.concatenate([p.flags for p in parts]),
        pa.concat_arrays([p.event_id for p in parts]),
        np.concatenate([p.event_time_ms for p in parts]),
        {name: pa.concat_arrays([p.keys[name] for p in parts]) for name in first.keys},
        _joined([p.amount_minor for p in parts]),
        _joined([p.is_fraud for p in parts]),
    )


def features_of(
    path: Path, feature_set: FeatureSet, label_delay_days: float, renamed: Mapping[str, str]
) -> Iterator[FeatureTable]:
    """Yield the features of a file chunk by chunk, in bounded memory.

    Raises:
        FeatureInputError: when the file lacks an id, a time or a key.
    """
    run = OfflineRun(feature_set, round(label_delay_days * DAY_MS))
    keys = tuple(entity.key for entity in feature_set.entities)
    needed = ("event_id", "event_time_ms", *keys)
    wanted = dict.fromkeys((*needed, "is_fraud", "amount_minor"))
    wanted |= dict.fromkeys(field.source for field in feature_set.fields)
    unknown = sorted(set(renamed) - set(wanted))
    if unknown:
        msg = f"mapping {unknown[0]!r}: these features read {', '.join(wanted)}"
        raise FeatureInputError(msg)
    texts = {"event_id", *keys, *(f.source for f in feature_set.fields if f.kind == "text")}
    in_file = {column for name in texts for column in names_in_file(name, renamed)}
    for table in read_chunks(path, in_file):
        columns = normalise(table, wanted, texts, renamed)
        missing = [name for name in needed if name not in columns]
        if missing:
            msg = (
                f"building features from {str(path)!r}: no column for {', '.join(missing)} among "
                f"{', '.join(table.column_names)}; name it with --map {missing[0]}=COLUMN"
            )
            raise FeatureInputError(msg)
        for name in ("event_id", *keys):
            columns[name] = pc.cast(columns[name], pa.string())
        if columns["event_time_ms"].null_count:
            msg = f"building features from {str(path)!r}: an event has no time"
            raise FeatureInputError(msg)
        if len(table):
            yield run.process(columns)


def _process_one(store: ShardStore, batch: EventBatch) -> Processed:
    return store.process(batch)


def _joined(parts: Sequence[NDArray[_Number] | None]) -> NDArray[_Number] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _numbers(table: pa.Table | None, name: str, n: int) -> NDArray[np.int64]:
    return np.zeros(n, np.int64) if table is None else table.column(name).to_numpy()


def _stack(
    labels: pa.Table | None, name: str, events: pa.Array, order: NDArray[np.int64]
) -> StringColumn:
    column = events
    if labels is not None and len(labels):
        column = pa.concat_arrays([*labels.column(name).chunks, events]).take(pa.array(order))
    return string_column(column)


def _padded(
    column: NumberColumn | StringColumn, before: int, order: NDArray[np.int64]
) -> NumberColumn | StringColumn:
    if not before:
        return column
    if isinstance(column, StringColumn):
        starts = np.concatenate([np.zeros(before, np.int64), column.starts])[order]
        lengths = np.concatenate([np.full(before, -1, np.int32), column.lengths])[order]
        return StringColumn(column.data, starts, lengths)
    values = np.concatenate([np.zeros(before, column.values.dtype), column.values])[order]
    valid = np.concatenate([np.zeros(before, np.bool_), column.valid])[order]
    return NumberColumn(values, valid)
