"""The columnar decoder: what it promises beyond equality with the reference."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.columns import NumberColumn, StringColumn
from schemas.decoder import ColumnarDecoder, Decoded
from schemas.model import Node, SchemaError, parse_schema
from schemas.reasons import Limits, Reason
from schemas.registry import RegisteredSchema, UnknownSchemaError
from schemas.wire import frame_value
from tests.fuzz.avro_fuzz import fuzz
from tests.property.avro_strategies import write_body


class Schemas:
    def __init__(self, *schemas: Any) -> None:
        self.nodes: dict[int, Node] = {i: parse_schema(s) for i, s in enumerate(schemas, 1)}
        self.asked = 0

    def schema_by_id(self, schema_id: int) -> RegisteredSchema:
        self.asked += 1
        if schema_id == 99:
            msg = "bad schema"
            raise SchemaError(msg)
        if schema_id not in self.nodes:
            msg = f"no schema {schema_id!r}"
            raise UnknownSchemaError(msg)
        return RegisteredSchema(schema_id, "", self.nodes[schema_id])


def record(*fields: Any, name: str = "T") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def item(name: str, type_: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type_, **more}


def batch(*values: bytes | None) -> StringColumn:
    return StringColumn.from_bytes(values)


def texts(decoded: Decoded, name: str) -> list[str | None]:
    column = decoded.columns[name]
    assert isinstance(column, StringColumn)
    return column.to_list()


def numbers(decoded: Decoded, name: str) -> list[Any]:
    column = decoded.columns[name]
    assert isinstance(column, NumberColumn)
    return [v if ok else None for v, ok in zip(column.values.tolist(), column.valid, strict=True)]


V1 = record(item("id", "string"), item("amount", "int"))
V2 = record(
    item("id", "string"),
    item("amount", "long"),
    item("city", "string", default="Z\u00fcrich"),
    item("note", ["null", "string"], default=None),
    item("rank", "int", default=7),
)


def decoder(*schemas: Any, reader: int = -1, limits: Limits | None = None) -> ColumnarDecoder:
    registry = Schemas(*schemas)
    node = parse_schema(schemas[reader])
    return ColumnarDecoder(node, registry, limits)  # type: ignore[arg-type]


def test_one_batch_may_hold_several_schemas_and_keeps_its_order() -> None:
    old = [frame_value(1, write_body(V1, {"id": f"o{i}", "amount": i})) for i in range(3)]
    new = [
        frame_value(2, write_body(V2, {"id": f"n{i}", "amount": 2**40, "city": "Bern", "rank": 1}))
        for i in range(3)
    ]
    mixed = [v for pair in zip(old, new, strict=True) for v in pair]
    decoded = decoder(V1, V2).decode(batch(*mixed))
    assert decoded.status.tolist() == [0] * 6
    assert decoded.schema_ids.tolist() == [1, 2] * 3
    assert texts(decoded, "id") == ["o0", "n0", "o1", "n1", "o2", "n2"]
    assert numbers(decoded, "amount") == [0, 2**40, 1, 2**40, 2, 2**40]
    assert texts(decoded, "city") == ["Z\u00fcrich", "Bern"] * 3
    assert texts(decoded, "note") == [None] * 6
    assert numbers(decoded, "rank") == [7, 1] * 3


def test_bad_records_between_good_ones_change_nothing_for_them() -> None:
    good = frame_value(1, write_body(V1, {"id": "good", "amount": 5}))
    bad: list[tuple[bytes | None, Reason]] = [
        (None, Reason.NULL_VALUE),
        (b"", Reason.NOT_AVRO),
        (b"\x00\x00\x00", Reason.NOT_AVRO),
        (b"\x01" + good[1:], Reason.NOT_AVRO),
        (good[:-1], Reason.TRUNCATED),
        (good[:7], Reason.TRUNCATED),
        (good + b"\x00", Reason.TRAILING_BYTES),
        (frame_value(7, good[5:]), Reason.UNKNOWN_SCHEMA_ID),
        (frame_value(-7, good[5:]), Reason.UNKNOWN_SCHEMA_ID),
        (frame_value(99, good[5:]), Reason.BAD_SCHEMA),
        (frame_value(1, b"\x08g\xffod\x0a"), Reason.INVALID_UTF8),
        (frame_value(1, b"\x01"), Reason.BAD_LENGTH),
        (frame_value(1, b"\x80" * 10 + b"\x01"), Reason.BAD_VARINT),
        (frame_value(1, b"\x00" + b"\xff\xff\xff\xff\x7f"), Reason.BAD_VARINT),
        (frame_value(1, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01x"), Reason.STRING_TOO_LONG),
        (frame_value(1, b"x" * 3_000), Reason.OVERSIZED),
    ]
    values: list[bytes | None] = [good]
    for value, _ in bad:
        values += [value, good]
    decoded = decoder(V1, limits=Limits(max_record_bytes=2_000)).decode(batch(*values))
    assert decoded.status[0::2].tolist() == [0] * (len(bad) + 1)
    assert [Reason(s) for s in decoded.status[1::2].tolist()] == [reason for _, reason in bad]
    assert texts(decoded, "id")[0::2] == ["good"] * (len(bad) + 1)
    assert texts(decoded, "id")[1::2] == [None] * len(bad)
    assert numbers(decoded, "amount")[1::2] == [None] * len(bad)


def test_a_writer_that_no_reader_can_read_refuses_its_records_only() -> None:
    other = record(item("id", "string"))
    values = (
        frame_value(1, write_body(V1, {"id": "a", "amount": 1})),
        frame_value(2, write_body(other, {"id": "b"})),
    )
    decoded = decoder(V1, other, reader=0).decode(batch(*values))
    assert [Reason(s) for s in decoded.status.tolist()] == [Reason.OK, Reason.INCOMPATIBLE_SCHEMA]


def test_the_registry_is_asked_once_for_what_it_knows_and_again_for_what_it_does_not() -> None:
    registry = Schemas(V1)
    reading = ColumnarDecoder(parse_schema(V1), registry)  # type: ignore[arg-type]
    good = frame_value(1, write_body(V1, {"id": "a", "amount": 1}))
    later = frame_value(2, good[5:])
    assert reading.decode(batch(good, later)).status.tolist() == [0, Reason.UNKNOWN_SCHEMA_ID]
    registry.nodes[2] = registry.nodes[1]
    assert reading.decode(batch(good, later)).status.tolist() == [0, 0]
    reading.decode(batch(good, later))
    assert registry.asked == 3


def test_an_empty_batch_has_empty_columns() -> None:
    decoded = decoder(V1).decode(batch())
    assert len(decoded) == 0
    assert {name: len(column) for name, column in decoded.columns.items()} == {"id": 0, "amount": 0}


def test_nested_records_are_flattened_and_null_ones_are_null_throughout() -> None:
    inner = record(item("x", "long"), item("y", "string"), name="In")
    outer = record(item("in", ["null", inner]))
    values = [
        frame_value(1, write_body(outer, {"in": {"x": 4, "y": "why"}})),
        frame_value(1, write_body(outer, {"in": None})),
    ]
    reading = decoder(outer)
    assert reading.column_names == ("in.x", "in.y")
    decoded = reading.decode(batch(*values))
    assert numbers(decoded, "in.x") == [4, None]
    assert texts(decoded, "in.y") == ["why", None]


def test_enum_codes_are_places_in_the_readers_symbols() -> None:
    written = record(item("e", {"type": "enum", "name": "E", "symbols": ["a", "b", "c"]}))
    enum = {"type": "enum", "name": "E", "symbols": ["c", "other"], "default": "other"}
    reading = decoder(written, record(item("e", enum)))
    values = [frame_value(1, write_body(written, {"e": e})) for e in "abc"]
    assert numbers(reading.decode(batch(*values)), "e") == [1, 1, 0]
    assert reading.symbols("e") == ("c", "other")


def test_fields_that_are_no_columns_are_refused_together() -> None:
    schema = record(
        item("tags", {"type": "array", "items": "string"}),
        item("both", ["int", "string"]),
        item("self", ["null", "T"], default=None),
    )
    with pytest.raises(SchemaError, match=r"3 field\(s\) cannot be") as caught:
        decoder(schema)
    for name in ("tags", "both", "self"):
        assert f"- {name}: " in str(caught.value)


def test_an_array_of_nothing_cannot_hold_the_decoder_up() -> None:
    written = record(item("id", "int"), item("none", {"type": "array", "items": "null"}))
    read = record(item("id", "int"))
    body = b"\x02" + b"\xfe" + b"\xff" * 8 + b"\x01" + b"\x00"
    assert decoder(written, read).decode(batch(frame_value(1, body))).status.tolist() == [
        Reason.TOO_MANY_ITEMS
    ]


def test_recursive_data_is_refused_past_the_depth_limit_and_read_before_it() -> None:
    node = record(item("next", ["null", "N"]), name="N")
    written = record(item("id", "int"), item("list", node))
    read = record(item("id", "int"))
    reading = decoder(written, read, limits=Limits(max_nesting=5))
    fits = frame_value(1, b"\x02" + b"\x02" * 4 + b"\x00")
    deep = frame_value(1, b"\x02" + b"\x02" * 5 + b"\x00")
    assert reading.decode(batch(fits, deep)).status.tolist() == [0, Reason.NESTING]


def test_a_schema_that_names_one_record_very_often_stays_a_small_program() -> None:
    inner: Any = record(item("x", "int"), name="R0")
    for level in range(1, 12):
        fields = [item("a", inner), item("b", f"R{level - 1}"), item("c", f"R{level - 1}")]
        inner = record(*fields, name=f"R{level}")
    written = record(item("id", "int"), item("big", inner))
    reading = decoder(written, record(item("id", "int")))
    assert reading.decode(batch(frame_value(1, b"\x02"))).status.tolist() == [Reason.TRUNCATED]


def test_a_hundred_thousand_damaged_records_all_end_in_a_row_or_a_reason() -> None:
    outcome = fuzz(100_000, seed=20, compare_every=500)
    assert outcome.records == sum(outcome.reasons.values()) == 100_000
    assert outcome.disagreements == []
    assert outcome.reasons["ok"] > 1_000
    assert len([name for name, count in outcome.reasons.items() if count]) >= 12
