"""Labels that become known some days after their transactions.

Defaults: a label is published when stream time passes event time + 6 days, and features look at
labels that are 7 days old. The day between is the slack for partitions that do not advance together
(the source keeps them within half a day) so that a label is always there when a feature needs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from connectors.producers.source import TransactionBatch
from connectors.producers.strings import concatenate
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.errors import ConfigurationError

__all__ = ["DAY_MS", "LABEL_SOURCES", "LabelBatch", "LabelPolicy", "PendingLabels"]

DAY_MS: Final = 86_400_000
"""Milliseconds of a day."""

LABEL_SOURCES: Final = ("unknown", "chargeback", "analyst", "customer", "simulator")
"""Symbols of the contract's enum `source`, in its order; the code is the position."""


@dataclass(frozen=True, slots=True)
class LabelPolicy:
    """Which transactions get a label, when, and in whose name.

    Attributes:
        which: `frauds` publishes a label for each fraud only, `all` for every transaction.
        delay_ms: event time between a transaction and its label.
        source: who says so, one of `LABEL_SOURCES`.
        flush: publish at the end what stream time has not reached yet.
    """

    which: Literal["frauds", "all", "none"] = "frauds"
    delay_ms: int = 6 * DAY_MS
    source: str = "chargeback"
    flush: bool = False

    def __post_init__(self) -> None:
        if self.delay_ms < 0:
            msg = f"setting the label delay: expected milliseconds >= 0, was {self.delay_ms!r}"
            raise ConfigurationError(msg)
        if self.source not in LABEL_SOURCES:
            msg = f"setting the label source: expected one of {LABEL_SOURCES}, was {self.source!r}"
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """Labels in publishing order, as columns of the label contract."""

    columns: dict[str, Column]
    labelled_at_ms: NDArray[np.int64]
    customer_id: StringColumn

    def __len__(self) -> int:
        return len(self.labelled_at_ms)


@dataclass(slots=True)
class _Chunk:
    due: NDArray[np.int64]
    event_id: StringColumn
    customer_id: StringColumn
    terminal_id: StringColumn
    event_time_ms: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]
    taken: int = 0


class PendingLabels:
    """Labels of published transactions, given out in order of the time they become known."""

    def __init__(self, policy: LabelPolicy) -> None:
        self._policy = policy
        self._chunks: list[_Chunk] = []
        self._next_due = math.inf

    def __len__(self) -> int:
        return sum(len(chunk.due) - chunk.taken for chunk in self._chunks)

    def add(self, batch: TransactionBatch) -> None:
        """Remember the labels of transactions that are being published."""
        if self._policy.which == "none" or batch.is_fraud is None:
            return
        every = self._policy.which == "all"
        rows = np.arange(len(batch)) if every else np.flatnonzero(batch.is_fraud)
        if not len(rows):
            return
        rows = rows[np.argsort(batch.event_time_ms[rows], kind="stable")]
        times = batch.event_time_ms[rows]
        due = times + self._policy.delay_ms
        self._next_due = min(self._next_due, int(due[0]))
        self._chunks.append(
            _Chunk(
                due=due,
                # The batch's text may be large; a copy of few rows lets it go.
                event_id=_compact(batch.text("event_id").take(rows)),
                customer_id=_compact(batch.text("customer_id").take(rows)),
                terminal_id=_compact(batch.text("terminal_id").take(rows)),
                event_time_ms=times,
                is_fraud=batch.is_fraud[rows],
            )
        )

    def due_times(self, until_ms: int) -> NDArray[np.int64]:
        """Return, sorted, when the labels known by `until_ms` are due."""
        if until_ms < self._next_due:
            return np.zeros(0, np.int64)
        parts = [
            chunk.due[chunk.taken : np.searchsorted(chunk.due, until_ms, "right")]
            for chunk in self._chunks
        ]
        return np.sort(np.concatenate(parts))

    def release(self, until_ms: int | None) -> LabelBatch | None:
        """Take the labels known by `until_ms` (None: all that wait), earliest first."""
        if not self._chunks or (until_ms is not None and until_ms < self._next_due):
            return None
        parts: list[tuple[_Chunk, slice]] = []
        for chunk in self._chunks:
            stop = (
                len(chunk.due)
                if until_ms is None
                else int(np.searchsorted(chunk.due, until_ms, "right"))
            )
            if stop > chunk.taken:
                parts.append((chunk, slice(chunk.taken, stop)))
                chunk.taken = stop
        self._chunks = [chunk for chunk in self._chunks if chunk.taken < len(chunk.due)]
        self._next_due = min((int(one.due[one.taken]) for one in self._chunks), default=math.inf)
        due = np.concatenate([chunk.due[part] for chunk, part in parts])
        order = np.argsort(due, kind="stable")
        due = due[order]
        present = np.ones(len(due), np.bool_)
        event_time_ms = np.concatenate([chunk.event_time_ms[part] for chunk, part in parts])[order]
        is_fraud = np.concatenate([chunk.is_fraud[part] for chunk, part in parts])[order]
        customer_id = concatenate([c.customer_id.take(part) for c, part in parts]).take(order)
        source = np.full(len(due), LABEL_SOURCES.index(self._policy.source), np.int32)
        columns: dict[str, Column] = {
            "event_id": concatenate([c.event_id.take(part) for c, part in parts]).take(order),
            "event_time_ms": NumberColumn(event_time_ms, present),
            "customer_id": customer_id,
            "terminal_id": concatenate([c.terminal_id.take(part) for c, part in parts]).take(order),
            "is_fraud": NumberColumn(is_fraud, present),
            "labelled_at_ms": NumberColumn(due, present),
            "source": NumberColumn(source, present),
            "revision": NumberColumn(np.zeros(len(due), np.int32), present),
        }
        return LabelBatch(columns, due, customer_id)


def _compact(column: StringColumn) -> StringColumn:
    pieces = [
        column.data[start : start + max(length, 0)]
        for start, length in zip(column.starts.tolist(), column.lengths.tolist(), strict=True)
    ]
    sizes = np.maximum(column.lengths, 0).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    return StringColumn(np.concatenate(pieces), starts, column.lengths.copy())
