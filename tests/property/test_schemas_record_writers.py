"""Records are written as fastavro writes them, whichever way they take."""

from __future__ import annotations

from typing import Any

import pytest

from schemas._record_writers import value_writer
from schemas.avro import EncodeError, RecordEncoder
from schemas.model import parse_schema
from schemas.wire import frame_value
from tests.property.avro_strategies import SchemaPairs, write_body


def _plain(schema: Any, value: Any) -> Any:
    """Take off the names by which fastavro is told one of two branches, where one is null."""
    if isinstance(schema, list):
        if value is None or len(schema) > 2 or "null" not in schema:
            return value
        return _plain(next(one for one in schema if one != "null"), value[1])
    if isinstance(schema, dict):
        if schema["type"] == "record":
            return {
                field["name"]: _plain(field["type"], value[field["name"]])
                for field in schema["fields"]
            }
        if schema["type"] == "array":
            return [_plain(schema["items"], one) for one in value]
        if schema["type"] == "map":
            return {key: _plain(schema["values"], one) for key, one in value.items()}
    return value


def test_every_record_is_written_as_fastavro_writes_it() -> None:
    direct = 0
    for seed in range(600):
        draw = SchemaPairs(seed)
        schema, _ = draw.pair()
        node = parse_schema(schema)
        encoder = RecordEncoder(node, 7)
        writer = value_writer(node)
        for _ in range(4):
            value = draw.value(schema, {})
            expected = write_body(schema, value)
            assert encoder.encode(value) == frame_value(7, expected)
            if writer is not None:
                out = bytearray()
                writer(_plain(schema, value), out)
                assert bytes(out) == expected
                direct += 1
    assert direct > 1_000


def test_integers_of_every_length_are_written_as_fastavro_writes_them() -> None:
    writer = value_writer(parse_schema('"long"'))
    assert writer is not None
    for bits in range(63):
        for number in (2**bits - 1, 2**bits, 2**bits + 1):
            for signed in (number, -number):
                out = bytearray()
                writer(signed, out)
                assert bytes(out) == write_body("long", signed)
    for outside in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError, match=str(outside)):
            writer(outside, bytearray())


def test_maps_are_written_in_their_own_order_whatever_keys_came_before() -> None:
    schema = {"type": "map", "values": "double"}
    writer = value_writer(parse_schema(schema))
    assert writer is not None
    # More sets of keys than are remembered, and the first ones again.
    for keys in [["a", "b"], ["b", "a"], ["a"], [], *([f"k{n}", "é"] for n in range(40))] * 2:
        value = {key: float(place) for place, key in enumerate(keys)}
        out = bytearray()
        writer(value, out)
        assert bytes(out) == write_body(schema, value)


def test_types_too_deep_for_a_function_are_written_all_the_same() -> None:
    schema: Any = "int"
    value: Any = 7
    for _ in range(25):
        schema, value = {"type": "array", "items": schema}, [value]
    record = {"type": "record", "name": "Deep", "fields": [{"name": "deep", "type": schema}]}
    encoded = RecordEncoder(parse_schema(record), 7).encode({"deep": value})
    assert encoded == frame_value(7, write_body(record, {"deep": value}))


SCHEMA = parse_schema(
    {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "whole", "type": "int"},
            {"name": "text", "type": ["null", "string"], "default": None},
            {"name": "many", "type": {"type": "map", "values": "double"}, "default": {}},
        ],
    }
)


def test_a_field_left_out_takes_its_default() -> None:
    encoder = RecordEncoder(SCHEMA, 1)
    full = {"whole": 5, "text": None, "many": {}}
    assert encoder.encode({"whole": 5}) == encoder.encode(full)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"whole": "five"},
        {"whole": 2**40},
        {"whole": 1, "text": 3},
        {"whole": 1, "many": {"a": "b"}},
        {"whole": 1, "more": 2},
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="under schema id 1"):
        RecordEncoder(SCHEMA, 1).encode(record)
