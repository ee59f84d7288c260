"""The reference: one Avro record at a time, through fastavro, behind checks of every byte.

The second opinion on a record that the columnar decoder refused, and the way to read and write
records with arrays and maps (alerts, dead letters). About 30 times slower than
`schemas.decoder.ColumnarDecoder`. Writing needs fastavro for recursive types and wide unions only.

fastavro alone is too lenient to stand in front of money: it reads booleans other than 0 and 1,
negative indexes into unions and enums (counting from the end, as Python does), integers beyond 32
bits as `int`, ignores bytes after the record, and loops for ever on an array of 2**60 nulls. Here a
plain-Python walk refuses these first; fastavro then does the resolution and makes the values.
"""

from __future__ import annotations

import copy
import io
import struct
from collections.abc import Mapping
from typing import Any, Final

import fastavro
from fastavro.read import SchemaResolutionError

from schemas._defaults import default_value
from schemas._record_writers import value_writer
from schemas._walk import walk_record
from schemas.compatibility import reader_problems
from schemas.errors import RecordError
from schemas.model import NO_DEFAULT, Node, SchemaError, parse_schema
from schemas.reasons import AvroRecordError, Limits, Reason
from schemas.registry import SchemaRegistry, UnknownSchemaError
from schemas.wire import HEADER_BYTES, frame_value, parse_header

__all__ = ["EncodeError", "RecordDecoder", "RecordEncoder", "decode_one", "encode"]

_MISFITS: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, IndexError)
_RESOLUTION_ERRORS: Final = (SchemaResolutionError, UnicodeDecodeError, KeyError)


class EncodeError(RecordError):
    """A record does not fit the schema it should be written with."""


class RecordEncoder:
    """Write records of one schema with the wire header. Timestamps are integers.

    Args:
        schema: the writer's schema, as `Node` or JSON text.
        schema_id: its id in the registry.
    """

    def __init__(self, schema: Node | str, schema_id: int) -> None:
        node = parse_schema(schema) if isinstance(schema, str) else schema
        self._write = value_writer(node)
        self._schema = fastavro_schema(node)
        self._header = frame_value(schema_id, b"")
        self._schema_id = schema_id

    def encode(self, record: Mapping[str, object]) -> bytes:
        """Return one framed value; a field left out takes its default.

        Raises:
            EncodeError: the record does not fit the schema, or names a field that it does not have.
        """
        if self._write is not None:
            value = bytearray(self._header)
            try:
                self._write(record, value)
                return bytes(value)
            except OverflowError as e:
                msg = f"encoding a record under schema id {self._schema_id}: {e}"
                raise EncodeError(msg) from e
            except (*_MISFITS, struct.error):
                # fastavro has the last word: it knows more ways to say a value, and what is wrong.
                pass
        target = io.BytesIO()
        try:
            fastavro.schemaless_writer(
                target, self._schema, dict(record), strict_allow_default=True
            )
        except _MISFITS as e:
            msg = f"encoding a record under schema id {self._schema_id}: {e}"
            raise EncodeError(msg) from e
        return self._header + target.getvalue()


class RecordDecoder:
    """Read framed values one at a time, whatever registered schema each was written with.

    Args:
        registry: resolves the ids that values name.
        reader: the schema to read as; None reads each value as it was written.
        limits: what one record may cost.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        reader: Node | str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._registry = registry
        self._limits = limits or Limits()
        self._reader = parse_schema(reader, self._limits) if isinstance(reader, str) else reader
        self._reader_schema = None if self._reader is None else fastavro_schema(self._reader)
        self._writers: dict[int, tuple[Node, Any]] = {}

    def decode(self, value: bytes | None) -> dict[str, Any]:
        """Return the record as plain values: timestamps as integers, bytes as bytes.

        Raises:
            AvroRecordError: with the reason; the same reason the columnar decoder gives.
            RetryableError: a remote registry does not answer.
        """
        if value is None:
            raise AvroRecordError(Reason.NULL_VALUE, "the record has no value")
        if len(value) > self._limits.max_record_bytes:
            detail = f"{len(value)} bytes, the limit is {self._limits.max_record_bytes}"
            raise AvroRecordError(Reason.OVERSIZED, detail)
        schema_id = parse_header(value)
        writer, writer_schema = self._writer(schema_id)
        body = value[HEADER_BYTES:]
        try:
            walk_record(body, writer, self._limits)
        except AvroRecordError as e:
            raise AvroRecordError(e.reason, e.detail, schema_id) from e
        try:
            record = fastavro.schemaless_reader(
                io.BytesIO(body), writer_schema, self._reader_schema
            )
        except _RESOLUTION_ERRORS as e:
            reason = Reason.UNRESOLVABLE
            if isinstance(e, UnicodeDecodeError):
                # Bytes read as text; text that was written as text has been checked above.
                reason = Reason.INVALID_UTF8
            raise AvroRecordError(reason, str(e), schema_id) from e
        if not isinstance(record, dict):
            detail = f"expected a record, was {type(record).__name__}"
            raise AvroRecordError(Reason.INCOMPATIBLE_SCHEMA, detail, schema_id)
        # fastavro puts the schema's own default objects into records; a caller may change its own.
        return copy.deepcopy(record)

    def _writer(self, schema_id: int) -> tuple[Node, Any]:
        known = self._writers.get(schema_id)
        if known is None:
            try:
                node = self._registry.schema_by_id(schema_id).node
            except UnknownSchemaError as e:
                raise AvroRecordError(Reason.UNKNOWN_SCHEMA_ID, str(e), schema_id) from e
            except SchemaError as e:
                raise AvroRecordError(Reason.BAD_SCHEMA, str(e), schema_id) from e
            known = node, fastavro_schema(node)
            self._writers[schema_id] = known
        return known

    def explain(self, schema_id: int) -> list[str]:
        """Return why the reader cannot read every record of a schema; empty if it can."""
        if self._reader is None:
            return []
        writer = self._registry.schema_by_id(schema_id).node
        return [str(problem) for problem in reader_problems(self._reader, writer)]


def encode(record: Mapping[str, object], schema: Node | str, schema_id: int) -> bytes:
    """Return one framed value; `RecordEncoder` is faster for many.

    Raises:
        EncodeError: the record does not fit the schema.
    """
    return RecordEncoder(schema, schema_id).encode(record)


def decode_one(
    value: bytes | None,
    registry: SchemaRegistry,
    reader: Node | str | None = None,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Return one framed value as a dictionary; `RecordDecoder` is faster for many.

    Raises:
        AvroRecordError: with the reason of the refusal.
        RetryableError: a remote registry does not answer.
    """
    return RecordDecoder(registry, reader, limits).decode(value)


def fastavro_schema(node: Node) -> Any:
    """Return a parsed schema for fastavro: no logical types, defaults as Python values.

    fastavro returns a field's default as the JSON has it, and checks that a union's default fits
    its first branch; so defaults are set after it has parsed, as the values that decoding gives.
    Logical types are left out because times stay integers in riskstream.
    """
    defaults: dict[tuple[str, str], Any] = {}
    parsed = fastavro.parse_schema(_rebuild(node, set(), defaults))
    _set_defaults(parsed, defaults)
    return parsed


def _set_defaults(parsed: Any, defaults: Mapping[tuple[str, str], Any]) -> None:
    if isinstance(parsed, list):
        for branch in parsed:
            _set_defaults(branch, defaults)
    elif isinstance(parsed, dict):
        for key in ("items", "values"):
            _set_defaults(parsed.get(key), defaults)
        for item in parsed.get("fields", ()):
            if (parsed["name"], item["name"]) in defaults:
                item["default"] = defaults[parsed["name"], item["name"]]
            _set_defaults(item["type"], defaults)


def _rebuild(node: Node, seen: set[str], defaults: dict[tuple[str, str], Any]) -> Any:
    if node.kind == "union":
        return [_rebuild(branch, seen, defaults) for branch in node.branches]
    if node.kind == "array":
        return {"type": "array", "items": _rebuild(node.item, seen, defaults)}
    if node.kind == "map":
        return {"type": "map", "values": _rebuild(node.item, seen, defaults)}
    if not node.name:
        return node.kind
    if node.name in seen:
        return node.name
    seen.add(node.name)
    out: dict[str, Any] = {"type": node.kind, "name": node.name, "aliases": list(node.aliases)}
    if node.kind == "fixed":
        out["size"] = node.size
    elif node.kind == "enum":
        out["symbols"] = list(node.symbols)
        if node.symbol_default is not None:
            out["default"] = node.symbol_default
    else:
        out["fields"] = []
        for field in node.fields:
            item: dict[str, Any] = {
                "name": field.name,
                "type": _rebuild(field.type, seen, defaults),
            }
            if field.aliases:
                item["aliases"] = list(field.aliases)
            if field.default is not NO_DEFAULT:
                defaults[node.name, field.name] = default_value(field.type, field.default)
            out["fields"].append(item)
    return out
