"""The Confluent wire format: a zero byte, the schema id as four big-endian bytes, the Avro body."""

from __future__ import annotations

import struct
from typing import Final

from schemas.reasons import AvroRecordError, Reason

__all__ = ["HEADER_BYTES", "MAX_SCHEMA_ID", "frame_value", "parse_header"]

HEADER_BYTES: Final = 5
"""Bytes before the Avro body."""

MAX_SCHEMA_ID: Final = 2**31 - 1
"""Schema ids are signed 32-bit; a registry hands out positive ones."""

_HEADER: Final = struct.Struct(">bi")


def frame_value(schema_id: int, body: bytes) -> bytes:
    r"""Return `body` with the header for `schema_id` in front.

    >>> frame_value(7, b"x")
    b'\x00\x00\x00\x00\x07x'
    """
    return _HEADER.pack(0, schema_id) + body


def parse_header(value: bytes) -> int:
    """Return the schema id of a value; the Avro body starts at `HEADER_BYTES`.

    Raises:
        AvroRecordError: with reason NOT_AVRO when the value has no such header.
    """
    if len(value) < HEADER_BYTES or value[0] != 0:
        detail = f"expected the bytes 00 and a schema id first, was {value[:HEADER_BYTES].hex()!r}"
        raise AvroRecordError(Reason.NOT_AVRO, detail)
    schema_id: int = _HEADER.unpack_from(value)[1]
    return schema_id
