"""The columnar encoder writes the bytes that fastavro writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import EncodeError, fastavro_schema
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.encoder import ColumnarEncoder
from schemas.model import parse_schema
from schemas.wire import frame_value

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = parse_schema(
    {
        "type": "record",
        "name": "All",
        "fields": [
            {"name": "flag", "type": "boolean"},
            {"name": "small", "type": ["null", "int"]},
            {"name": "large", "type": "long"},
            {"name": "single", "type": ["float", "null"]},
            {"name": "exact", "type": ["null", "double"]},
            {"name": "text", "type": "string"},
            {"name": "note", "type": ["string", "null"]},
            {"name": "raw", "type": ["null", "bytes"]},
            {"name": "code", "type": {"type": "fixed", "name": "F", "size": 3}},
            {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["a", "b", "c"]}},
            {
                "name": "at",
                "type": {
                    "type": "record",
                    "name": "At",
                    "fields": [{"name": "x", "type": "long"}, {"name": "y", "type": "string"}],
                },
            },
            {"name": "tags", "type": {"type": "array", "items": "string"}, "default": ["one"]},
            {"name": "extra", "type": ["null", "string"], "default": None},
        ],
    }
)
SYMBOLS = ["a", "b", "c"]
LONGS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(max_size=20)
ROWS = st.fixed_dictionaries(
    {
        "flag": st.booleans(),
        "small": st.none() | st.integers(-(2**31), 2**31 - 1),
        "large": LONGS,
        "single": st.none() | st.floats(width=32),
        "exact": st.none() | st.floats(),
        "text": TEXTS,
        "note": st.none() | TEXTS,
        "raw": st.none() | st.binary(max_size=9),
        "code": st.binary(min_size=3, max_size=3),
        "kind": st.sampled_from(SYMBOLS),
        "at": st.fixed_dictionaries({"x": LONGS, "y": TEXTS}),
    }
)


def numbers(values: list[Any], dtype: type[np.generic]) -> NumberColumn:
    valid = np.array([value is not None for value in values], np.bool_)
    return NumberColumn(np.array([v if v is not None else 0 for v in values], dtype), valid)


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Column]:
    return {
        "flag": numbers([row["flag"] for row in rows], np.bool_),
        "small": numbers([row["small"] for row in rows], np.int32),
        "large": numbers([row["large"] for row in rows], np.int64),
        "single": numbers([row["single"] for row in rows], np.float32),
        "exact": numbers([row["exact"] for row in rows], np.float64),
        "text": StringColumn.from_texts([row["text"] for row in rows]),
        "note": StringColumn.from_texts([row["note"] for row in rows]),
        "raw": StringColumn.from_bytes([row["raw"] for row in rows]),
        "code": StringColumn.from_bytes([row["code"] for row in rows]),
        "kind": numbers([SYMBOLS.index(row["kind"]) for row in rows], np.int32),
        "at.x": numbers([row["at"]["x"] for row in rows], np.int64),
        "at.y": StringColumn.from_texts([row["at"]["y"] for row in rows]),
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=12))
def test_columns_become_the_bytes_that_fastavro_writes(rows: list[dict[str, Any]]) -> None:
    encoded = ColumnarEncoder(SCHEMA, 77).encode(columns_of(rows))
    for index, row in enumerate(rows):
        target = io.BytesIO()
        fastavro.schemaless_writer(target, fastavro_schema(SCHEMA), row)
        assert encoded.bytes_at(index) == frame_value(77, target.getvalue())


ROW: dict[str, Any] = {
    "flag": True,
    "small": 1,
    "large": 2,
    "single": None,
    "exact": 1.0,
    "text": "t",
    "note": None,
    "raw": None,
    "code": b"abc",
    "kind": "a",
    "at": {"x": 1, "y": "y"},
}


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        (
            "large",
            NumberColumn(np.zeros(1, np.int64), np.zeros(1, np.bool_)),
            "does not allow null",
        ),
        ("small", numbers([2**31], np.int64), "out of the range"),
        ("kind", numbers([3], np.int32), "out of the range"),
        ("code", StringColumn.from_bytes([b"ab"]), "not of the size"),
        ("text", numbers([1], np.int64), "needs a StringColumn"),
        ("large", numbers([1.5], np.float64), "needs integers"),
        ("large", numbers([1, 2], np.int64), "lengths differ"),
        ("nope", numbers([1], np.int64), "unknown columns"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_by_name(
    name: str, column: Column, message: str
) -> None:
    columns = columns_of([ROW]) | {name: column}
    with pytest.raises(EncodeError, match=message):
        ColumnarEncoder(SCHEMA, 1).encode(columns)


def test_a_field_without_column_and_default_is_refused() -> None:
    columns = columns_of([ROW])
    del columns["large"]
    with pytest.raises(EncodeError, match=r"'large'.*no default"):
        ColumnarEncoder(SCHEMA, 1).encode(columns)


def test_an_empty_batch_encodes_to_nothing() -> None:
    columns = {
        name: (
            StringColumn(column.data, column.starts[:0], column.lengths[:0])
            if isinstance(column, StringColumn)
            else NumberColumn(column.values[:0], column.valid[:0])
        )
        for name, column in columns_of([ROW]).items()
    }
    assert len(ColumnarEncoder(SCHEMA, 1).encode(columns)) == 0
