"""Dead letters: find them on their topic, describe them without personal data, send them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from connectors.readers import Record, TopicReader
from schemas.avro import RecordDecoder
from schemas.reasons import AvroRecordError, Limits

__all__ = [
    "ATTEMPT_HEADER",
    "LETTER_LIMITS",
    "DeadLetter",
    "read_dead_letters",
    "replay_headers",
]

ATTEMPT_HEADER: Final = "riskstream_attempt"
"""Header that counts how often a record was sent again, in decimal text."""

LETTER_LIMITS: Final = Limits(
    max_record_bytes=64 * 1024 * 1024, max_string_bytes=64 * 1024 * 1024, max_nesting=4
)
"""A letter holds records that were refused for their size; Kafka bounds it, not we."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One refused record, as it came, and why it was refused.

    `letter_id` is the place of the letter on the dead-letter topic, as in `2:17`; `place` that of
    the record it stands for, as in `card-transactions/0:5120`.
    """

    letter_id: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    reason: str
    detail: str
    schema_id: int | None
    stage: str
    job: str
    failed_at_ms: int
    attempt: int

    @property
    def place(self) -> str:
        """Topic, partition and offset of the refused record."""
        return f"{self.topic}/{self.partition}:{self.offset}"

    def summary(self) -> dict[str, Any]:
        """Return what may be listed: coordinates, reason and sizes, nothing of the contents.

        The key is left out as well: it names a customer.
        """
        return {
            "id": self.letter_id,
            "record": self.place,
            "reason": self.reason,
            "stage": self.stage,
            "job": self.job,
            "schema_id": self.schema_id,
            "value_bytes": None if self.value is None else len(self.value),
            "published_at_ms": self.timestamp_ms,
            "failed_at_ms": self.failed_at_ms,
            "attempt": self.attempt,
        }


def read_dead_letters(
    reader: TopicReader,
    decoder: RecordDecoder,
    *,
    ids: frozenset[str] = frozenset(),
    reason: str | None = None,
    since_ms: int | None = None,
    on_unreadable: Callable[[Record, Exception], None] = lambda record, error: None,
) -> Iterator[DeadLetter]:
    """Yield the letters that the topic holds and that fit every condition given.

    Args:
        reader: the dead-letter topic.
        decoder: reads letters.
        ids: only these letters; empty means all.
        reason: only this reason.
        since_ms: only letters that failed at this time or later.
        on_unreadable: called with a letter that is itself unreadable; it is passed over.
    """
    for record in reader.held_records():
        letter_id = f"{record.partition}:{record.offset}"
        if ids and letter_id not in ids:
            continue
        try:
            fields = decoder.decode(record.value)
        except AvroRecordError as e:
            on_unreadable(record, e)
            continue
        letter = DeadLetter(
            letter_id=letter_id,
            headers=tuple((item["name"], item["value"]) for item in fields.pop("headers")),
            **{name: fields[name] for name in _PLAIN_FIELDS},
        )
        if reason is not None and letter.reason != reason:
            continue
        if since_ms is not None and letter.failed_at_ms < since_ms:
            continue
        yield letter


_PLAIN_FIELDS: Final = (
    "topic",
    "partition",
    "offset",
    "timestamp_ms",
    "key",
    "value",
    "reason",
    "detail",
    "schema_id",
    "stage",
    "job",
    "failed_at_ms",
    "attempt",
)


def replay_headers(letter: DeadLetter) -> list[tuple[str, str | bytes | None]]:
    """Return the headers of a record that is sent again: its own, and the attempt counted up."""
    kept: list[tuple[str, str | bytes | None]] = [
        (name, value) for name, value in letter.headers if name != ATTEMPT_HEADER
    ]
    return [*kept, (ATTEMPT_HEADER, str(letter.attempt + 1).encode())]
