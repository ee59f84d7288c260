"""The columnar decoder and the reference accept the same bytes and make the same values of them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from schemas.avro import RecordDecoder
from schemas.columns import NumberColumn, StringColumn
from schemas.decoder import ColumnarDecoder, Decoded
from schemas.model import Node, parse_schema
from schemas.reasons import AvroRecordError, Limits, Reason
from schemas.registry import RegisteredSchema, UnknownSchemaError
from schemas.wire import frame_value
from tests.property.avro_strategies import SchemaPairs, mutate, write_body

LIMITS = Limits(max_record_bytes=2_000, max_string_bytes=64, max_nesting=6, max_items=50)


RESOLUTION_REASONS = {Reason.INCOMPATIBLE_SCHEMA, Reason.UNRESOLVABLE, Reason.INVALID_UTF8}


class MemoryRegistry:
    """Schemas by id, in memory."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}

    def schema_by_id(self, schema_id: int) -> RegisteredSchema:
        if schema_id not in self.nodes:
            msg = f"no schema {schema_id!r}"
            raise UnknownSchemaError(msg)
        return RegisteredSchema(schema_id, "", self.nodes[schema_id])


def column_value(decoder: ColumnarDecoder, decoded: Decoded, name: str, row: int) -> Any:
    column = decoded.columns[name]
    if isinstance(column, StringColumn):
        return column.bytes_at(row)
    assert isinstance(column, NumberColumn)
    if not column.valid[row]:
        return None
    symbols = decoder.symbols(name)
    return symbols[int(column.values[row])] if symbols else column.values[row].item()


def flat(record: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    out = {}
    for name in names:
        value: Any = record
        for step in name.split("."):
            value = None if value is None else value[step]
        out[name] = value.encode() if isinstance(value, str) else value
    return out


def same(decoder: ColumnarDecoder, name: str, got: Any, expected: Any, store: Any) -> bool:
    if isinstance(got, str):
        got = got.encode()
    if isinstance(expected, float | int) and not isinstance(expected, bool) and got is not None:
        with np.errstate(over="ignore"):
            expected = store.type(expected)
            return bool(np.isclose(got, expected, rtol=0, atol=0, equal_nan=True))
    return bool(got == expected) and (got is None) == (expected is None)


def outcome_of(
    reference: RecordDecoder, value: bytes | None
) -> tuple[dict[str, Any], Reason | None]:
    try:
        return reference.decode(value), None
    except AvroRecordError as e:
        return {}, e.reason


@pytest.mark.parametrize("seed", range(60))
def test_decoder_and_reference_agree_on_random_schemas_and_damaged_bytes(seed: int) -> None:
    draw = SchemaPairs(seed)
    registry = MemoryRegistry()
    writer, reader = draw.pair()
    registry.nodes[1] = parse_schema(writer)
    registry.nodes[2] = parse_schema(reader)
    values: list[bytes | None] = [None, b"", b"\x00", b"\x01\x00\x00\x00\x01"]
    for _ in range(60):
        for schema_id, schema in ((1, writer), (2, reader)):
            value = frame_value(schema_id, write_body(schema, draw.value(schema, {})))
            values.append(value)
            values += [mutate(draw.random, value, 5) for _ in range(4)]
            values.append(mutate(draw.random, value))
    draw.random.shuffle(values)
    decoder = ColumnarDecoder(registry.nodes[2], registry, LIMITS)  # type: ignore[arg-type]
    reference = RecordDecoder(registry, registry.nodes[2], LIMITS)  # type: ignore[arg-type]
    decoded = decoder.decode(StringColumn.from_bytes(values))
    assert len(decoded) == len(values)
    for row, value in enumerate(values):
        status = Reason(int(decoded.status[row]))
        record, refused = outcome_of(reference, value)
        if refused is not None:
            assert status is not Reason.OK, (value, refused)
            # The reference checks the bytes by the writer's schema first and resolves afterwards;
            # the decoder does both in one pass, so it may meet a resolution's problem earlier.
            if status not in RESOLUTION_REASONS:
                assert status is refused, value
            assert all(
                column_value(decoder, decoded, name, row) is None for name in decoder.column_names
            )
            continue
        assert status is Reason.OK, (value, record)
        expected = flat(record, decoder.column_names)
        for name in decoder.column_names:
            got = column_value(decoder, decoded, name, row)
            column = decoded.columns[name]
            store = column.values.dtype if isinstance(column, NumberColumn) else None
            assert same(decoder, name, got, expected[name], store), (name, got, expected[name])


def test_where_a_batch_is_cut_does_not_matter() -> None:
    draw = SchemaPairs(5)
    registry = MemoryRegistry()
    writer, reader = draw.pair()
    registry.nodes = {1: parse_schema(writer), 2: parse_schema(reader)}
    source = random.Random(1)
    values = []
    for i in range(80):
        schema = writer if i % 3 else reader
        value = frame_value(1 if i % 3 else 2, write_body(schema, draw.value(schema, {})))
        values.append(mutate(source, value) if i % 5 == 0 else value)
    decoder = ColumnarDecoder(registry.nodes[2], registry)  # type: ignore[arg-type]
    whole = decoder.decode(StringColumn.from_bytes(list(values)))
    for row, value in enumerate(values):
        alone = decoder.decode(StringColumn.from_bytes([value]))
        assert alone.status[0] == whole.status[row]
        for name in decoder.column_names:
            assert column_value(decoder, alone, name, 0) == column_value(decoder, whole, name, row)
