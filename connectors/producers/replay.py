"""Publish a source of transactions, and their labels, at a chosen pace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, Protocol

import numpy as np

from connectors.producers.labels import LabelPolicy, PendingLabels
from connectors.producers.pace import Clock, Pacing
from connectors.producers.publisher import Publisher
from connectors.producers.source import TransactionBatch, TransactionSource
from schemas.columns import Columns, StringColumn

__all__ = ["Encoder", "ReplaySummary", "Route", "replay"]

# A hand-over costs about 0.3 ms however few events it has: every event alone at 2,000/s took 0.4 of
# a core. So events leave together, each up to this much after it was due.
_SLICE_SECONDS: Final = 0.01
# Waits are cut so that Ctrl-C and progress stay lively.
_LONGEST_SLEEP_SECONDS: Final = 0.25
# Labels are put between transactions to within this many; finer makes tiny slices, and a slice
# costs about 0.2 ms however small it is.
_LABEL_SLICE: Final = 256


class Encoder(Protocol):
    """Writes columns as Avro values (`schemas.encoder.ColumnarEncoder`)."""

    def encode(self, columns: Columns) -> StringColumn:
        """Return one encoded value a row."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where one kind of record goes and how it is written."""

    topic: str
    encoder: Encoder


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """What was published; times of the first and last event are event times."""

    transactions: int
    labels: int
    labels_not_due: int
    seconds: float
    events_per_second: float
    first_event_time_ms: int | None
    last_event_time_ms: int | None

    def as_dict(self) -> dict[str, int | float | None]:
        """Return the summary as a plain mapping."""
        return asdict(self)


def replay(
    source: TransactionSource,
    publisher: Publisher,
    pace: Pacing,
    labels: LabelPolicy,
    clock: Clock,
    progress: Callable[[int], None],
    *,
    transactions: Route,
    label_route: Route,
) -> ReplaySummary:
    """Publish every transaction when due, and labels when stream time passes theirs.

    Records keep the order of the source; both topics are keyed by customer. Stream time is the
    largest event time published so far. An event whose time has passed is published at once: a slow
    broker delays the stream but never thins it.

    Args:
        source: what to publish.
        publisher: takes the encoded records.
        pace: when transactions are due.
        labels: which labels follow, and when.
        clock: wall time and waiting.
        progress: called with the number of transactions published since the last call.
        transactions: topic and encoder of transactions.
        label_route: topic and encoder of labels.

    Raises:
        DeliveryError: when Kafka did not take a record.
        ConfigurationError: when the source cannot be read.
    """
    stream = _Stream(publisher, transactions, label_route, PendingLabels(labels), progress)
    started = clock.monotonic()
    for batch in source.batches():
        due = pace.due_seconds(stream.published, batch.event_time_ms, stream.first(batch))
        at, n = 0, len(batch)
        while at < n:
            elapsed = clock.monotonic() - started
            wait = 0.0 if pace.flat_out else float(due[at]) + _SLICE_SECONDS - elapsed
            if wait > 0:
                clock.sleep(min(wait, _LONGEST_SLEEP_SECONDS))
                continue
            ready = n if pace.flat_out else int(np.searchsorted(due, elapsed, "right"))
            stream.publish(batch.rows(at, ready))
            at = ready
    if labels.flush:
        stream.publish_labels(None)
    publisher.flush()
    seconds = clock.monotonic() - started
    return ReplaySummary(
        transactions=stream.published,
        labels=stream.labels,
        labels_not_due=len(stream.pending),
        seconds=round(seconds, 6),
        events_per_second=round(stream.published / seconds, 1) if seconds > 0 else 0.0,
        first_event_time_ms=stream.first_event_time_ms,
        last_event_time_ms=stream.stream_time_ms,
    )


class _Stream:
    def __init__(
        self,
        publisher: Publisher,
        transactions: Route,
        label_route: Route,
        pending: PendingLabels,
        progress: Callable[[int], None],
    ) -> None:
        self.pending = pending
        self.published = 0
        self.labels = 0
        self.first_event_time_ms: int | None = None
        self.stream_time_ms: int | None = None
        self._publisher = publisher
        self._transactions = transactions
        self._label_route = label_route
        self._progress = progress

    def first(self, batch: TransactionBatch) -> int:
        if self.first_event_time_ms is None and len(batch):
            self.first_event_time_ms = int(batch.event_time_ms[0])
        return self.first_event_time_ms or 0

    def publish(self, batch: TransactionBatch) -> None:
        times = batch.event_time_ms
        stream_times = np.maximum.accumulate(times)
        if self.stream_time_ms is not None:
            stream_times = np.maximum(stream_times, self.stream_time_ms)
        # With a delay shorter than the batch, labels of the batch itself may be due inside it.
        self.pending.add(batch)
        due = self.pending.due_times(int(stream_times[-1]))
        positions = np.searchsorted(stream_times, due) // _LABEL_SLICE * _LABEL_SLICE + _LABEL_SLICE
        cuts = np.unique(np.minimum(np.append(positions, len(batch)), len(batch))).tolist()
        values = self._transactions.encoder.encode(batch.columns)
        keys = batch.text("customer_id")
        at = 0
        for cut in cuts:
            part = slice(at, cut)
            self._publisher.publish(
                self._transactions.topic,
                StringColumn(keys.data, keys.starts[part], keys.lengths[part]),
                StringColumn(values.data, values.starts[part], values.lengths[part]),
                times[part],
            )
            self.published += cut - at
            self.stream_time_ms = int(stream_times[cut - 1])
            self._progress(cut - at)
            self.publish_labels(self.stream_time_ms)
            at = cut

    def publish_labels(self, until_ms: int | None) -> None:
        batch = self.pending.release(until_ms)
        if batch is None:
            return
        values = self._label_route.encoder.encode(batch.columns)
        self._publisher.publish(
            self._label_route.topic, batch.customer_id, values, batch.labelled_at_ms
        )
        self.labels += len(batch)
