"""From a batch of frames to checked columns; rows are transactions, labels, control or refused.

Both stages of the job start here, so a record is judged by the same rules wherever it is read. A
row is refused with the first reason that applies; its neighbours are not affected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.frames import FrameBatch, topic_index
from connectors.source_time import source_time_ms
from jobs.fraud._intake_kernels import judge, split_kinds
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.decoder import ColumnarDecoder, Decoded
from schemas.reasons import Reason

__all__ = ["Intake", "IntakeLimits", "Kind", "Refusal", "TransactionIntake", "describe"]

# Before this, no card payment was ever made: a time that small is a unit error (seconds for
# milliseconds).
EARLIEST_EVENT_TIME_MS: Final = 315_532_800_000  # 1980-01-01


_NO_ROWS: Final = np.empty(0, np.int64)
_NO_DEGREES: Final = np.empty(0, np.float64)
_NO_ROWS.flags.writeable = False


class Kind(IntEnum):
    """What a row is; the first two are also `EventBatch.kind` of the window store."""

    TRANSACTION = 0
    LABEL = 1
    CONTROL = 2
    REFUSED = 3


class Refusal(IntEnum):
    """Why a record that is valid Avro cannot be scored; codes below 100 are the decoder's."""

    MISSING_KEY = 100
    KEY_MISMATCH = 101
    EMPTY_ID = 102
    NEGATIVE_AMOUNT = 103
    ABSURD_AMOUNT = 104
    EVENT_TIME_OUT_OF_RANGE = 105
    EVENT_TIME_IN_FUTURE = 106
    DUPLICATE_EVENT = 107
    UNKNOWN_TOPIC = 108
    BAD_CONTROL = 109
    BAD_LOCATION = 110

    @property
    def code(self) -> str:
        """Return the text that dead letters and metrics carry, as in ``negative_amount``."""
        return self.name.lower()

    @property
    def text(self) -> str:
        """Return one sentence for a person."""
        return _TEXTS[self]


_TEXTS: Final[Mapping[Refusal, str]] = {
    Refusal.MISSING_KEY: "The record has no key; the key must be the customer id.",
    Refusal.KEY_MISMATCH: (
        "The record's key differs from its customer id, so it reached the wrong shard."
    ),
    Refusal.EMPTY_ID: "The event, customer or terminal id is empty.",
    Refusal.NEGATIVE_AMOUNT: "The amount is negative; a refund is another event.",
    Refusal.ABSURD_AMOUNT: "The amount is above fraud.max_amount_minor.",
    Refusal.EVENT_TIME_OUT_OF_RANGE: "The event time lies before 1980; is it in milliseconds?",
    Refusal.EVENT_TIME_IN_FUTURE: (
        "The event time lies further after its publication than fraud.max_future_ms."
    ),
    Refusal.DUPLICATE_EVENT: "An event with this id was already scored for this customer.",
    Refusal.UNKNOWN_TOPIC: "The record comes from a topic this job does not read.",
    Refusal.BAD_CONTROL: "The control record could not be read.",
    Refusal.BAD_LOCATION: "Latitude or longitude is not a number or outside of its range.",
}

_UNKNOWN_TOPIC: Final = int(Refusal.UNKNOWN_TOPIC)
_CHECKS: Final = [
    int(refusal)
    for refusal in (
        Refusal.MISSING_KEY,
        Refusal.EMPTY_ID,
        Refusal.KEY_MISMATCH,
        Refusal.EVENT_TIME_OUT_OF_RANGE,
        Refusal.EVENT_TIME_IN_FUTURE,
        Refusal.NEGATIVE_AMOUNT,
        Refusal.ABSURD_AMOUNT,
        Refusal.BAD_LOCATION,
    )
]


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """Bounds of a usable transaction."""

    max_amount_minor: int
    max_future_ms: int


@dataclass(slots=True)
class Intake:
    """A checked batch of n frames: columns of length n, zero or null where a row has no such field.

    `reason` is 0, a decoder `Reason` or a `Refusal`; rows with a reason have kind REFUSED.
    """

    frames: FrameBatch
    kind: NDArray[np.uint8]
    reason: NDArray[np.uint8]
    columns: dict[str, Column]
    transactions: NDArray[np.intp]
    labels: NDArray[np.intp]
    controls: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.kind)

    def number(self, name: str) -> NDArray[Any]:
        """Return the values of a number column; the contract's type decides their dtype."""
        column = self.columns[name]
        if not isinstance(column, NumberColumn):
            msg = f"column {name!r} holds text, not numbers"
            raise TypeError(msg)
        return column.values

    def text(self, name: str) -> StringColumn:
        """Return a text column."""
        column = self.columns[name]
        if not isinstance(column, StringColumn):
            msg = f"column {name!r} holds numbers, not text"
            raise TypeError(msg)
        return column

    def refuse(self, rows: NDArray[np.intp], reason: Refusal) -> None:
        """Mark rows as refused after the checks, as for a duplicate that the store found."""
        self.kind[rows] = Kind.REFUSED
        self.reason[rows] = reason
        self.transactions = self.transactions[self.kind[self.transactions] == Kind.TRANSACTION]
        self.labels = self.labels[self.kind[self.labels] == Kind.LABEL]


class TransactionIntake:
    """Decode and check batches of the fraud job's three topics."""

    def __init__(
        self,
        transactions: ColumnarDecoder,
        labels: ColumnarDecoder,
        topics: Sequence[str],
        limits: IntakeLimits,
    ) -> None:
        """Take both decoders and the names of the transaction, label and control topics."""
        self._transactions = transactions
        self._labels = labels
        self._topics = [topic.encode() for topic in topics]
        # In the order of the checks; `judge` counts on it.
        self._bounds = np.array(
            [EARLIEST_EVENT_TIME_MS, limits.max_future_ms, limits.max_amount_minor, *_CHECKS],
            np.int64,
        )
        self._all_rows = _counted(1024)

    def read(self, batch: bytes) -> Intake:
        """Return the batch's rows with their fields; a bad record only marks its own row."""
        frames = FrameBatch.parse(batch)
        n = len(frames)
        topics = topic_index(frames, self._topics)
        kind = np.empty(n, np.uint8)
        reason = np.zeros(n, np.uint8)
        counts = split_kinds(topics, kind, reason, _UNKNOWN_TOPIC)
        transactions, labels, controls = (
            self._rows_of(topics, number, count) for number, count in enumerate(counts)
        )
        columns: dict[str, Column] = {}
        if len(transactions) or not len(labels):
            decoded = self._transactions.decode(_take(frames.value, transactions, n))
            reason[transactions] = decoded.status
            columns = _spread(decoded, transactions, n)
        if len(labels):
            decoded = self._labels.decode(_take(frames.value, labels, n))
            reason[labels] = decoded.status
            columns = _merge(columns, _spread(decoded, labels, n), labels)
        intake = Intake(frames, kind, reason, columns, transactions, labels, controls)
        if self._judge(intake):
            intake.transactions = transactions[reason[transactions] == 0]
            intake.labels = labels[reason[labels] == 0]
        return intake

    def _rows_of(self, topics: NDArray[np.int16], number: int, count: int) -> NDArray[np.intp]:
        # Most batches hold one kind of record: its rows are all rows, and need not be looked for.
        if count == len(topics):
            if count > len(self._all_rows):
                self._all_rows = _counted(2 * count)
            return self._all_rows[:count]
        return np.flatnonzero(topics == number) if count else _NO_ROWS

    def _judge(self, intake: Intake) -> int:
        frames, columns = intake.frames, intake.columns
        key = frames.key
        event, customer, terminal = (
            intake.text(name) for name in ("event_id", "customer_id", "terminal_id")
        )
        payments = "amount_minor" in columns
        refused: int = judge(
            intake.kind,
            intake.reason,
            key.data,
            key.starts,
            key.lengths,
            event.data,
            event.starts,
            event.lengths,
            customer.data,
            customer.starts,
            customer.lengths,
            terminal.data,
            terminal.starts,
            terminal.lengths,
            intake.number("event_time_ms"),
            source_time_ms(frames),
            intake.number("amount_minor") if payments else _NO_ROWS,
            intake.number("latitude") if payments else _NO_DEGREES,
            intake.number("longitude") if payments else _NO_DEGREES,
            payments,
            self._bounds,
        )
        return refused


def describe(reason: int) -> tuple[str, str]:
    """Return the code and the sentence of a decoder reason or a refusal."""
    known = Refusal(reason) if reason >= Refusal.MISSING_KEY else Reason(reason)
    return known.code, known.text


def _counted(count: int) -> NDArray[np.intp]:
    rows = np.arange(count)
    rows.flags.writeable = False
    return rows


def _take(values: StringColumn, rows: NDArray[np.intp], n: int) -> StringColumn:
    if len(rows) == n:
        return values
    return values.take(rows)


def _spread(decoded: Decoded, rows: NDArray[np.intp], n: int) -> dict[str, Column]:
    """Return the decoded columns at their own rows among n; the other rows are null."""
    if len(rows) == n:
        return dict(decoded.columns)
    spread: dict[str, Column] = {}
    for name, column in decoded.columns.items():
        if isinstance(column, NumberColumn):
            values = np.zeros(n, column.values.dtype)
            valid = np.zeros(n, np.bool_)
            values[rows], valid[rows] = column.values, column.valid
            spread[name] = NumberColumn(values, valid)
        else:
            starts = np.zeros(n, np.int64)
            lengths = np.full(n, -1, np.int32)
            starts[rows], lengths[rows] = column.starts, column.lengths
            spread[name] = StringColumn(column.data, starts, lengths)
    return spread


def _merge(
    columns: dict[str, Column], others: dict[str, Column], rows: NDArray[np.intp]
) -> dict[str, Column]:
    """Put the rows of `others` into the columns of the same name; add those of other names."""
    for name, other in others.items():
        column = columns.get(name)
        if isinstance(column, NumberColumn) and isinstance(other, NumberColumn):
            column.values[rows] = other.values[rows]
            column.valid[rows] = other.valid[rows]
        elif isinstance(column, StringColumn) and isinstance(other, StringColumn):
            columns[name] = _merge_text(column, other, rows)
        else:
            columns[name] = other
    return columns


def _merge_text(column: StringColumn, other: StringColumn, rows: NDArray[np.intp]) -> StringColumn:
    data, shift = column.data, 0
    # Both decoders return views into the batch itself, unless a text default of the reader's schema
    # had to be appended.
    if other.data is not data:
        data, shift = np.concatenate([data, other.data]), len(data)
    column.starts[rows] = other.starts[rows] + shift
    column.lengths[rows] = other.lengths[rows]
    return StringColumn(data, column.starts, column.lengths)
