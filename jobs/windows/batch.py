"""What goes into a shard's window store and what comes out, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray

from schemas.columns import NumberColumn, StringColumn

__all__ = ["EventBatch", "Kind", "Processed", "RowFlag"]


class Kind(IntEnum):
    """What a row of a batch is."""

    EVENT = 0
    LABEL = 1
    IGNORE = 2


class RowFlag(IntFlag):
    """What was noticed about a row; several may be set."""

    DUPLICATE = 1
    """The event id is already counted for this key: counted once, scored as the first one."""
    LATE = 2
    """Older than the newest event of its key; inserted at its event time and counted."""
    TOO_LATE = 4
    """Older than everything that is kept: scored on its own, not counted."""
    UNKNOWN_LABEL = 8
    """The labelled event is not there (never seen, or expired); the label waits for it."""
    NULL_KEY = 16
    """The event has no key for this entity: scored on its own, not counted."""
    TRUNCATED = 32
    """Late by more than the allowed lateness: its longest window reaches expired events."""
    TILED = 64
    """The key is hot: old parts of its windows are rounded to tiles (see `HotKeys`)."""
    STALE_LABEL = 128
    """A label whose revision is not above the one in force; it changes nothing."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Rows of one entity in arrival order; labels stand among the events where they arrived.

    `event_time_ms` of a label is the time of the label itself and does not move the clock.
    `fields` holds the source fields that the feature set names, and, where a row is a label,
    `is_fraud` (bool or integer) and `revision` (integer, absent or null means 0). A field that is
    missing is null.
    """

    kind: NDArray[np.uint8]
    key: StringColumn
    event_time_ms: NDArray[np.int64]
    event_id: StringColumn
    fields: Mapping[str, NumberColumn | StringColumn]

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True)
class Processed:
    """What a batch gave.

    `features` is float64 (n, k) in the order of `FeatureSet.names_of(entity)`; rows that are not
    events are NaN. `flags` is uint8 of `RowFlag`. `delta` is the durable form of exactly what the
    batch changed, empty when it changed nothing.
    """

    features: NDArray[np.float64]
    flags: NDArray[np.uint8]
    delta: bytes
