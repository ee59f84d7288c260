"""Why a record was refused, and the limits that refuse it before it can cost anything.

The codes are what the columnar decoder writes per record, what the reference raises, and what a
dead letter carries as text. They are part of the contract: a code never changes its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from schemas.errors import RecordError

__all__ = ["AvroRecordError", "Limits", "Reason"]


class Reason(IntEnum):
    """Outcome of decoding one record: OK (0), or the first thing that was wrong with it."""

    OK = 0
    NULL_VALUE = 1
    OVERSIZED = 2
    NOT_AVRO = 3
    UNKNOWN_SCHEMA_ID = 4
    BAD_SCHEMA = 5
    INCOMPATIBLE_SCHEMA = 6
    TRUNCATED = 7
    TRAILING_BYTES = 8
    BAD_VARINT = 9
    BAD_LENGTH = 10
    BAD_UNION_BRANCH = 11
    BAD_ENUM_INDEX = 12
    BAD_BOOLEAN = 13
    INVALID_UTF8 = 14
    STRING_TOO_LONG = 15
    NESTING = 16
    TOO_MANY_ITEMS = 17
    UNRESOLVABLE = 18

    @property
    def code(self) -> str:
        """Return the text that dead letters and metrics carry, as in ``trailing_bytes``."""
        return self.name.lower()

    @property
    def text(self) -> str:
        """Return one sentence for a person."""
        return _TEXTS[self]


_TEXTS: Final[dict[Reason, str]] = {
    Reason.OK: "The record was decoded.",
    Reason.NULL_VALUE: "The record has no value.",
    Reason.OVERSIZED: "The record is longer than the limit.",
    Reason.NOT_AVRO: "The value does not start with the magic byte 0 and a schema id.",
    Reason.UNKNOWN_SCHEMA_ID: "The registry knows no schema with this id.",
    Reason.BAD_SCHEMA: "The registered schema is not valid Avro or exceeds the limits.",
    Reason.INCOMPATIBLE_SCHEMA: "The reader cannot read what this schema writes.",
    Reason.TRUNCATED: "The bytes end before the record does.",
    Reason.TRAILING_BYTES: "Bytes are left after the end of the record.",
    Reason.BAD_VARINT: "A variable-length integer is too long or out of the range of its type.",
    Reason.BAD_LENGTH: "A length or a count is negative or absurd.",
    Reason.BAD_UNION_BRANCH: "A union names a branch that its schema does not have.",
    Reason.BAD_ENUM_INDEX: "An enum names a symbol that its schema does not have.",
    Reason.BAD_BOOLEAN: "A boolean is neither 0 nor 1.",
    Reason.INVALID_UTF8: "A string is not valid UTF-8.",
    Reason.STRING_TOO_LONG: "A string or byte sequence is longer than the limit.",
    Reason.NESTING: "Records, arrays and maps are nested deeper than the limit.",
    Reason.TOO_MANY_ITEMS: "Arrays and maps hold more items than the limit.",
    Reason.UNRESOLVABLE: "The value is one for which the reader's schema has no place.",
}


class AvroRecordError(RecordError):
    """One Avro record was refused; `reason` says why and `schema_id` under which schema."""

    def __init__(self, reason: Reason, detail: str, schema_id: int | None = None) -> None:
        super().__init__(f"decoding an Avro record: {reason.code}: {detail}")
        self.reason = reason
        self.detail = detail
        self.schema_id = schema_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one record and one schema may cost; past a limit the record becomes a dead letter.

    `max_nesting` counts the records (beside the outermost), arrays and maps around a value.
    `max_items` bounds all array and map items of a record together: an item may take no bytes at
    all (an array of null), so the record's length alone bounds nothing.
    """

    max_record_bytes: int = 64 * 1024
    max_string_bytes: int = 4 * 1024
    max_nesting: int = 32
    max_items: int = 65_536
    max_schema_bytes: int = 256 * 1024
    max_schema_nodes: int = 10_000
