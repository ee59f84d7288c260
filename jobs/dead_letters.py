"""Turn a refused record into a dead letter: its raw bytes, where it came from, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from connectors.frames import FrameBatch, write_frame
from schemas.avro import RecordEncoder

__all__ = ["DeadLetterWriter"]

ATTEMPT_HEADER: Final = "riskstream_attempt"
MAX_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class DeadLetterWriter:
    """Write dead letters of one stage to the dead-letter topic.

    Rare by nature, so each is built in Python; the record is the reference for `riskstream
    dead-letters` and the audit.
    """

    topic: str
    job: str
    stage: str
    encoder: RecordEncoder
    now_ms: Callable[[], int]

    def frame(self, frames: FrameBatch, row: int, reason: str, detail: str) -> bytes:
        """Return the frame of one dead letter, keyed like the record it stands for."""
        key = frames.key.bytes_at(row)
        value = frames.value.bytes_at(row)
        now_ms = self.now_ms()
        record = {
            "topic": frames.topic.text_at(row),
            "partition": int(frames.partition[row]),
            "offset": int(frames.offset[row]),
            "timestamp_ms": int(frames.timestamp_ms[row]),
            "key": key,
            "value": value,
            "headers": [
                {"name": name, "value": content} for name, content in frames.headers_at(row)
            ],
            "reason": reason,
            "detail": detail,
            # Signed, as registries number: hostile bytes may say any 32 bits.
            "schema_id": int.from_bytes(value[1:5], "big", signed=True)
            if value is not None and len(value) >= 5 and value[0] == 0
            else None,
            "stage": self.stage,
            "job": self.job,
            "failed_at_ms": now_ms,
            "attempt": _attempt(frames, row),
        }
        return write_frame(
            topic=self.topic, key=key, value=self.encoder.encode(record), timestamp_ms=now_ms
        )


def _attempt(frames: FrameBatch, row: int) -> int:
    for name, content in frames.headers_at(row):
        # Anyone may write this header: what is not a small number counts as no attempt.
        if name == ATTEMPT_HEADER and content is not None:
            return int(content) if content.isdigit() and len(content) <= MAX_DIGITS else 0
    return 0
