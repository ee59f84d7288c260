"""Encode columns into Avro values in the Confluent wire format, for producers of many records."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final, NoReturn

import fastavro
import numpy as np
from numpy.typing import NDArray

from schemas import _encode_kernels as kernels
from schemas._defaults import default_value
from schemas._program import without_null
from schemas.avro import EncodeError, fastavro_schema
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.model import NO_DEFAULT, FieldNode, Node, SchemaError, parse_schema

__all__ = ["ColumnarEncoder"]

_KINDS: Final = {
    "boolean": kernels.BOOLEAN,
    "int": kernels.INTEGER,
    "long": kernels.INTEGER,
    "enum": kernels.INTEGER,
    "float": kernels.FLOAT,
    "double": kernels.DOUBLE,
    "string": kernels.TEXT,
    "bytes": kernels.TEXT,
    "fixed": kernels.FIXED,
}
_PROBLEMS: Final = {
    1: "null, but the schema does not allow null",
    2: "out of the range of its type",
    3: "not of the size that the schema fixes",
}


class ColumnarEncoder:
    """Encode batches of columns under one schema.

    Takes the columns that `schemas.decoder.ColumnarDecoder` gives: booleans, int32, int64, float32,
    float64 and enum codes as `NumberColumn`, text, bytes and fixed as `StringColumn`, nested
    records by dotted names. A field without a column takes its default, of any type, arrays and
    maps included. Text is written as it is: whoever made the column vouches for its UTF-8.

    Args:
        schema: the writer's schema, a record, as `Node` or JSON text.
        schema_id: its id in the registry.

    Raises:
        SchemaError: a nested record is nullable, which columns cannot say, or holds itself.
    """

    def __init__(self, schema: Node | str, schema_id: int) -> None:
        self._schema = parse_schema(schema) if isinstance(schema, str) else schema
        if self._schema.kind != "record":
            msg = f"encoding columns: expected a record, was {self._schema.label()}"
            raise SchemaError(msg)
        self._schema_id = schema_id
        self._fields: list[tuple[str, FieldNode]] = []
        self._flatten(self._schema, "", (self._schema,))
        self._constants: dict[str, bytes] = {}

    def _flatten(self, record: Node, prefix: str, open_records: tuple[Node, ...]) -> None:
        for field in record.fields:
            name = prefix + field.name
            if field.type.kind == "record":
                if field.type in open_records:
                    msg = f"encoding columns: {name}: {field.type.label()} holds itself"
                    raise SchemaError(msg)
                self._flatten(field.type, f"{name}.", (*open_records, field.type))
            else:
                self._fields.append((name, field))

    @property
    def column_names(self) -> tuple[str, ...]:
        """Every name that `encode` takes, in the order of the schema."""
        return tuple(name for name, _ in self._fields)

    def warm(self) -> None:
        """Compile the kernels, or load them from numba's cache."""
        self._encode(np.zeros((1, 6), np.int64), b"", [], [], [], [], count=0, names=["warm"])

    def encode(self, columns: Mapping[str, Column]) -> StringColumn:
        """Return one framed value per record, packed one after another in a new buffer.

        Args:
            columns: by field name, all of the same length.

        Raises:
            EncodeError: a name that the schema does not have, columns of different lengths, a field
                without column and default, a column of the wrong type, a null or a number that the
                schema does not allow (with field and record).
        """
        count = self._check(columns)
        plan = np.zeros((len(self._fields), 6), np.int64)
        constants = bytearray()
        integers: list[tuple[NDArray[np.generic], int, int]] = []
        reals: list[NDArray[np.uint64]] = []
        texts: list[StringColumn] = []
        marks: list[NDArray[np.bool_]] = []
        for index, (name, field) in enumerate(self._fields):
            column = columns.get(name)
            if column is None:
                constant = self._constant(name, field)
                plan[index] = (kernels.CONSTANT, 0, 0, -1, len(constants), len(constant))
                constants += constant
                continue
            node, null_byte = self._column_type(name, field)
            kind = _KINDS[node.kind]
            row = len(texts)
            if kind in (kernels.TEXT, kernels.FIXED):
                if not isinstance(column, StringColumn):
                    self._refuse(
                        name, f"{node.kind} needs a StringColumn, was {type(column).__name__}"
                    )
                texts.append(column)
            else:
                if not isinstance(column, NumberColumn):
                    self._refuse(
                        name, f"{node.kind} needs a NumberColumn, was {type(column).__name__}"
                    )
                if kind in (kernels.FLOAT, kernels.DOUBLE):
                    row = len(reals)
                    reals.append(_bits(column.values, kind))
                else:
                    row = len(integers)
                    if column.values.dtype.kind not in "iub" or column.values.dtype == np.uint64:
                        self._refuse(name, f"{node.kind} needs integers, was {column.values.dtype}")
                    integers.append((column.values, *_range(node)))
                marks.append(column.valid)
            plan[index] = (kind, row, max(len(marks) - 1, 0), null_byte, 0, node.size)
        names = [name for name, _ in self._fields]
        return self._encode(
            plan, bytes(constants), integers, reals, texts, marks, count=count, names=names
        )

    def _check(self, columns: Mapping[str, Column]) -> int:
        unknown = sorted(set(columns) - set(self.column_names))
        lengths = {name: len(column) for name, column in columns.items()}
        if unknown or len(set(lengths.values())) != 1:
            what = f"unknown columns {unknown!r}" if unknown else f"lengths differ: {lengths!r}"
            msg = f"encoding {self._schema.label()}: {what}; it has {', '.join(self.column_names)}"
            raise EncodeError(msg)
        return next(iter(lengths.values()))

    def _refuse(self, name: str, what: str) -> NoReturn:
        msg = f"encoding {self._schema.label()}: field {name!r}: {what}"
        raise EncodeError(msg)

    def _column_type(self, name: str, field: FieldNode) -> tuple[Node, int]:
        try:
            node, nullable = without_null(field.type)
        except SchemaError as e:
            msg = f"encoding {self._schema.label()}: field {name!r}: {e}"
            raise EncodeError(msg) from e
        if node.kind not in _KINDS:
            self._refuse(name, f"{node.label()} is not a column; leave it out to write its default")
        if field.type.kind == "union":
            if not nullable or len(field.type.branches) != 2:
                self._refuse(name, f"{field.type.label()} is not a union of null and one type")
            return node, 0 if field.type.branches[0].kind == "null" else 2
        return node, -1

    def _constant(self, name: str, field: FieldNode) -> bytes:
        known = self._constants.get(name)
        if known is None:
            if field.default is NO_DEFAULT:
                self._refuse(name, "no column was given and the schema has no default")
            target = io.BytesIO()
            value = default_value(field.type, field.default)
            fastavro.schemaless_writer(target, fastavro_schema(field.type), value)
            known = self._constants[name] = target.getvalue()
        return known

    def _encode(
        self,
        plan: NDArray[np.int64],
        constants: bytes,
        integers: list[tuple[NDArray[np.generic], int, int]],
        reals: list[NDArray[np.uint64]],
        texts: list[StringColumn],
        marks: list[NDArray[np.bool_]],
        *,
        count: int,
        names: list[str],
    ) -> StringColumn:
        integer_matrix = np.zeros((len(integers), count), np.int64)
        for row, (values, _, _) in enumerate(integers):
            integer_matrix[row] = values
        real_matrix = np.array(reals, np.uint64).reshape(len(reals), count)
        valid = np.array(marks, np.bool_).reshape(len(marks), count)
        text_lengths = np.array([text.lengths for text in texts], np.int32).reshape(
            len(texts), count
        )
        text_starts = np.array([text.starts for text in texts], np.int64).reshape(len(texts), count)
        buffers, bases = _one_buffer(texts)
        lengths = np.zeros(count, np.int32)
        problem, field, record = kernels.measure(
            plan,
            integer_matrix,
            np.array([low for _, low, _ in integers], np.int64),
            np.array([high for _, _, high in integers], np.int64),
            text_lengths,
            valid,
            lengths,
        )
        if problem:
            self._refuse(names[field], f"record {record} is {_PROBLEMS[problem]}")
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        out = np.empty(int(ends[-1]) if count else 0, np.uint8)
        kernels.write(
            plan,
            self._schema_id,
            np.frombuffer(bytearray(constants), np.uint8),
            integer_matrix,
            real_matrix,
            buffers,
            bases,
            text_starts,
            text_lengths,
            valid,
            starts,
            out,
        )
        return StringColumn(out, starts, lengths)


def _range(node: Node) -> tuple[int, int]:
    if node.kind == "enum":
        return 0, len(node.symbols) - 1
    if node.kind == "int":
        return -(2**31), 2**31 - 1
    return -(2**63), 2**63 - 1


def _bits(values: NDArray[np.generic], kind: int) -> NDArray[np.uint64]:
    if kind == kernels.DOUBLE:
        return values.astype(np.float64).view(np.uint64)
    return values.astype(np.float32).view(np.uint32).astype(np.uint64)


def _one_buffer(texts: list[StringColumn]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return one buffer for all text columns, and where each column's own bytes start in it."""
    placed: dict[int, int] = {}
    parts: list[NDArray[np.uint8]] = []
    size = 0
    bases = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        # Columns of one decoded batch share their buffer: it is placed once.
        if id(text.data) not in placed:
            placed[id(text.data)] = size
            parts.append(text.data)
            size += len(text.data)
        bases[row] = placed[id(text.data)]
    # A single buffer still needs a copy when read-only, so that one kernel version serves all.
    joined = np.concatenate([*parts, np.zeros(0, np.uint8)])
    return joined, bases
