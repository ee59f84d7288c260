"""From a batch of frames to checked columns of ticks, quotes and fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from connectors.frames import FrameBatch, topic_index
from connectors.source_time import source_time_ms
from jobs.market_risk.names import text_rows
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.decoder import ColumnarDecoder
from schemas.reasons import Reason
from schemas.strings import equal_rows

__all__ = [
    "MARKS_TOPIC",
    "MarketBatch",
    "MarketIntake",
    "Part",
    "Refusal",
    "Topic",
    "describe",
    "rows_of",
]

MARKS_TOPIC: Final = "#marks"
"""Topic of the frames that the first stage sends to the second; no Kafka topic may be named so."""

# Before this nothing was quoted in milliseconds: a time that small is a unit error.
_EARLIEST_MS: Final = 315_532_800_000  # 1980-01-01
_MAX_SCALE: Final = 12
_NEVER_MS: Final = 1 << 62


class Topic(IntEnum):
    """What a frame holds; the order is that of the topic names given to `MarketIntake`."""

    TICK = 0
    QUOTE = 1
    FILL = 2
    INSTRUMENT = 3
    LIMIT = 4
    SCENARIO = 5
    FX_RATE = 6
    CONTROL = 7
    MARKS = 8


class Refusal(IntEnum):
    """Why a record that is valid Avro cannot be used; codes below 100 are the decoder's."""

    MISSING_KEY = 120
    KEY_MISMATCH = 121
    EMPTY_ID = 122
    NEGATIVE_SIZE = 123
    BAD_SCALE = 124
    EVENT_TIME_OUT_OF_RANGE = 125
    EVENT_TIME_IN_FUTURE = 126
    AMOUNT_OVERFLOW = 127
    UNKNOWN_TOPIC = 128
    BAD_REFERENCE = 129
    BAD_CONTROL = 130

    @property
    def code(self) -> str:
        """Return the text that dead letters and metrics carry, as in ``bad_scale``."""
        return self.name.lower()


_TEXTS: Final[Mapping[Refusal, str]] = {
    Refusal.MISSING_KEY: "The record has no key.",
    Refusal.KEY_MISMATCH: "The key differs from the id it must equal, so it is in the wrong shard.",
    Refusal.EMPTY_ID: "An id is empty.",
    Refusal.NEGATIVE_SIZE: "A size is negative.",
    Refusal.BAD_SCALE: "A scale is outside 0 to 12, or finer than its instrument began with.",
    Refusal.EVENT_TIME_OUT_OF_RANGE: "The event time lies before 1980; is it in milliseconds?",
    Refusal.EVENT_TIME_IN_FUTURE: "The event time lies too far after its publication.",
    Refusal.AMOUNT_OVERFLOW: "Quantity times price does not fit 64 bits at these scales.",
    Refusal.UNKNOWN_TOPIC: "The record comes from a topic this job does not read.",
    Refusal.BAD_REFERENCE: "The reference record could not be used.",
    Refusal.BAD_CONTROL: "The control record could not be read.",
}


@dataclass(frozen=True, slots=True)
class Part:
    """The sound rows of one kind in a batch: their places in it, ascending, and their fields."""

    rows: NDArray[np.intp]
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.rows)

    def integers(self, name: str) -> NDArray[np.int64]:
        """Return a number field as int64."""
        column = self.columns[name]
        if not isinstance(column, NumberColumn):
            msg = f"column {name!r} holds text, not numbers"
            raise TypeError(msg)
        return column.values.astype(np.int64)

    def optional(self, name: str, missing: int) -> NDArray[np.int64]:
        """Return a nullable number field, `missing` where it is null."""
        column = self.columns[name]
        if not isinstance(column, NumberColumn):
            msg = f"column {name!r} holds text, not numbers"
            raise TypeError(msg)
        return np.where(column.valid, column.values.astype(np.int64), missing)

    def text(self, name: str) -> StringColumn:
        """Return a text field."""
        column = self.columns[name]
        if not isinstance(column, StringColumn):
            msg = f"column {name!r} holds numbers, not text"
            raise TypeError(msg)
        return column

    def within(self, rows: range) -> Part:
        """Return those of a stretch of the batch."""
        if not len(self) or (rows.start <= self.rows[0] and self.rows[-1] < rows.stop):
            return self
        return self.take((self.rows >= rows.start) & (self.rows < rows.stop))

    def take(self, chosen: NDArray[np.bool_]) -> Part:
        """Return some of the rows."""
        return Part(
            self.rows[chosen],
            {name: rows_of(column, chosen) for name, column in self.columns.items()},
        )


@dataclass(slots=True)
class MarketBatch:
    """A batch of n frames: which topic each is from and why it is refused (0: it is not)."""

    frames: FrameBatch
    topic: NDArray[np.int16]
    reason: NDArray[np.uint8]
    parts: dict[Topic, Part]

    def __len__(self) -> int:
        return len(self.topic)

    def refuse(self, rows: NDArray[np.intp], why: Refusal) -> None:
        """Mark rows that a later check refused."""
        self.reason[rows] = why


class MarketIntake:
    """Decode and check batches of the market risk job.

    Args:
        decoders: of ticks, quotes and fills, in this order.
        topics: full names of the topics, in the order of `Topic` without `MARKS`.
        max_future_ms: how far after its publication an event may claim to be.
    """

    def __init__(
        self,
        decoders: Sequence[ColumnarDecoder],
        topics: Sequence[str],
        max_future_ms: int,
    ) -> None:
        self._decoders = dict(zip((Topic.TICK, Topic.QUOTE, Topic.FILL), decoders, strict=True))
        self._topics = [*(topic.encode() for topic in topics), MARKS_TOPIC.encode()]
        self._max_future_ms = max_future_ms

    def read(self, batch: bytes) -> MarketBatch:
        """Return the sound rows by kind; a bad record only marks its own row."""
        frames = FrameBatch.parse(batch)
        topic = topic_index(frames, self._topics)
        reason = np.zeros(len(frames), np.uint8)
        reason[topic < 0] = Refusal.UNKNOWN_TOPIC
        parts = {}
        published = source_time_ms(frames)
        for kind, decoder in self._decoders.items():
            rows = np.flatnonzero(topic == kind)
            decoded = decoder.decode(text_rows(frames.value, rows))
            part = Part(rows, decoded.columns)
            status = decoded.status.copy()
            sound = status == 0
            for bad, why in self._checks(kind, part, text_rows(frames.key, rows), published[rows]):
                status[bad & (status == 0)] = why
            reason[rows] = status
            parts[kind] = part if sound.all() and not status.any() else part.take(status == 0)
        return MarketBatch(frames, topic, reason, parts)

    def _checks(
        self, kind: Topic, part: Part, key: StringColumn, published: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.bool_], Refusal]]:
        time_ms = part.integers("event_time_ms")
        latest = np.where(published < 0, _NEVER_MS, published) + self._max_future_ms
        scales = np.stack([part.integers("price_scale"), part.integers("quantity_scale")])
        owner = "account_id" if kind is Topic.FILL else "instrument_id"
        ids = ["instrument_id"]
        negative = np.zeros(len(part), np.bool_)
        if kind is Topic.FILL:
            ids += ["fill_id", "account_id", "desk_id", "firm_id"]
        elif kind is Topic.TICK:
            negative = part.integers("size") < 0
        else:
            negative = (part.integers("bid_size") < 0) | (part.integers("ask_size") < 0)
        empty = np.any([part.text(name).lengths <= 0 for name in ids], axis=0)
        return [
            (key.lengths < 0, Refusal.MISSING_KEY),
            (empty, Refusal.EMPTY_ID),
            (~equal_rows(key, part.text(owner)), Refusal.KEY_MISMATCH),
            (negative, Refusal.NEGATIVE_SIZE),
            (np.any((scales < 0) | (scales > _MAX_SCALE), axis=0), Refusal.BAD_SCALE),
            (time_ms < _EARLIEST_MS, Refusal.EVENT_TIME_OUT_OF_RANGE),
            (time_ms > latest, Refusal.EVENT_TIME_IN_FUTURE),
        ]


def describe(reason: int) -> tuple[str, str]:
    """Return the code and the sentence of a reason, the decoder's or ours."""
    if reason >= min(Refusal):
        refusal = Refusal(reason)
        return refusal.code, _TEXTS[refusal]
    decoder = Reason(reason)
    return decoder.code, decoder.text


def rows_of(column: Column, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Column:
    """Return some rows of a column."""
    if isinstance(column, NumberColumn):
        return NumberColumn(column.values[chosen], column.valid[chosen])
    return text_rows(column, chosen)
