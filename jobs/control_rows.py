"""What a job made of a control record, as the columns of table `control_outcomes`."""

from __future__ import annotations

import numpy as np

from connectors.frames import FrameBatch
from connectors.row_binary import PackedValue
from models.control import ControlRecord
from models.scorer import Outcome
from schemas.columns import StringColumn

__all__ = ["control_columns"]


def control_columns(
    frames: FrameBatch, row: int, shard: int, control: ControlRecord, outcome: Outcome, now_ms: int
) -> dict[str, PackedValue]:
    """Return the columns of one row.

    Args:
        frames: the batch with the record.
        row: its place there.
        shard: that applied or refused it.
        control: the record.
        outcome: what came of it.
        now_ms: wall clock.
    """
    text = StringColumn.from_texts
    at = np.array([row])
    topic = frames.topic
    return {
        "shard": shard,
        "issued_at_ms": control.issued_at_ms,
        "applied_at_ms": now_ms,
        "kafka_partition": frames.partition[at],
        "kafka_offset": frames.offset[at],
        "control_id": text([control.control_id]),
        "kind": control.kind,
        "subject": text([control.subject]),
        "issued_by": text([control.issued_by]),
        "outcome": "applied" if outcome.accepted else "refused",
        "detail": text([outcome.reason]),
        "kafka_topic": StringColumn(topic.data, topic.starts[at], topic.lengths[at]),
    }
