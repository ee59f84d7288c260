"""Decode batches of Avro values straight into columns.

A pair of schemas is compiled once into a small program; one numba kernel runs any program over all
records of a batch, reading the bytes where they arrived. Strings stay views. The measurements
behind it are in docs/decisions/0001-columnar-decoder.md; `schemas.avro.decode_one` is the reference
that it is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas import _decode_kernels as kernels
from schemas._program import Layout, Program, compile_program, plan_layout
from schemas.columns import Column, NumberColumn, StringColumn, readonly
from schemas.model import Node, SchemaError, parse_schema
from schemas.reasons import Limits, Reason
from schemas.registry import SchemaRegistry, UnknownSchemaError

__all__ = ["ColumnarDecoder", "Decoded"]

_NO_ROWS: Final = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded batch, every array in the order of the records.

    Where `status` is not 0 it is the `Reason` of the refusal and every column is null there.
    `schema_ids` is -1 where the value names none.
    """

    columns: dict[str, Column]
    status: NDArray[np.uint8]
    schema_ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.status)


class ColumnarDecoder:
    """Decode values in the Confluent wire format into the columns of one reader schema.

    Columns, by the type of the reader's field (a union of null and one type makes it nullable):

    ==========================  ======================================================
    boolean, null               `NumberColumn` of bool
    int                         `NumberColumn` of int32
    long (also timestamps)      `NumberColumn` of int64
    float, double               `NumberColumn` of float32, float64
    enum                        `NumberColumn` of int32: place in the reader's symbols
    string, bytes, fixed        `StringColumn` of views into the batch
    record                      its fields, flattened: ``source.offset``
    ==========================  ======================================================

    Writers are resolved as Avro 1.11 says: aliases, promotions, defaults, enum defaults, unions by
    the branch that was written; what only the writer has is skipped, whatever its type. A null
    nested record shows as null in all its fields.

    Stricter than fastavro, and equal to `schemas.avro.decode_one`: bytes after the record, booleans
    other than 0 and 1, negative indexes into enums and unions, integers beyond their type's range
    and whatever exceeds the limits are refused.

    Not thread-safe: one decoder per thread.

    Args:
        reader_schema: the record that the columns come from, as `Node` or JSON text.
        registry: resolves the ids that values name; asked once per id that it knows.
        limits: what one record may cost.

    Raises:
        SchemaError: the reader's schema has fields that are no columns (arrays, maps, unions of
            several types, records within themselves), all listed.
    """

    def __init__(
        self, reader_schema: Node | str, registry: SchemaRegistry, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._reader = (
            parse_schema(reader_schema, self._limits)
            if isinstance(reader_schema, str)
            else reader_schema
        )
        self._registry = registry
        self._layout: Layout = plan_layout(self._reader, self._limits)
        self._programs: dict[int, Program | Reason] = {}
        self._constant_ids: set[int] = set()

    @property
    def reader_schema(self) -> Node:
        """The reader's schema."""
        return self._reader

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns, in the order of the reader's fields."""
        return tuple(column.name for column in self._layout.columns)

    def symbols(self, column: str) -> tuple[str, ...]:
        """Return the symbols that the codes of an enum column stand for.

        Raises:
            KeyError: there is no such column.
        """
        return self._layout.by_name[column].node.symbols

    def warm(self) -> None:
        """Compile the kernels, or load them from numba's cache."""
        program = compile_program(self._reader, self._reader, self._layout)
        empty = np.zeros(0, np.uint8)
        outputs = _Outputs(self._layout, 0)
        header_args = (empty, np.zeros(0, np.int64), np.zeros(0, np.int32))
        self._scan(*header_args, outputs.status, outputs.ids)
        self._run(*header_args, outputs, 0, program, 0)

    def decode(self, values: StringColumn) -> Decoded:
        """Decode a batch; one bad record never affects another.

        Args:
            values: one value per record, null where the record had none. The columns that come
                back keep views of `values.data`.

        Raises:
            RetryableError: a remote registry does not answer; nothing was decoded, try again.
        """
        data = np.ascontiguousarray(values.data)
        starts = np.ascontiguousarray(values.starts)
        lengths = np.ascontiguousarray(values.lengths)
        outputs = _Outputs(self._layout, len(starts))
        readable, first, same = self._scan(data, starts, lengths, outputs.status, outputs.ids)
        base = len(data)
        if readable:
            if same:
                wanted = [int(first)]
            else:
                wanted = [int(i) for i in np.unique(outputs.ids[outputs.status == 0])]
            refused: dict[Reason, list[int]] = {}
            runs: list[tuple[int, Program, int]] = []
            constants = bytearray()
            for schema_id in wanted:
                program = self._programs.get(schema_id)
                if program is None:
                    program = self._compile(schema_id)
                if isinstance(program, Reason):
                    refused.setdefault(program, []).append(schema_id)
                    continue
                runs.append((schema_id, program, base + len(constants)))
                constants += program.constants
            for schema_id, program, constants_at in runs:
                self._run(data, starts, lengths, outputs, schema_id, program, constants_at)
            for reason, ids in refused.items():
                known = outputs.status == 0
                outputs.status[known & np.isin(outputs.ids, np.array(ids, np.int32))] = reason
            if constants:
                # Defaults that are text need a place in the buffer that views point into.
                data = np.concatenate([data, np.frombuffer(bytes(constants), np.uint8)])
        return Decoded(outputs.columns(self._layout, data), outputs.status, outputs.ids)

    def _compile(self, schema_id: int) -> Program | Reason:
        try:
            writer = self._registry.schema_by_id(schema_id)
        except UnknownSchemaError:
            # Not remembered: it may be registered a moment later.
            return Reason.UNKNOWN_SCHEMA_ID
        except SchemaError:
            program: Program | Reason = Reason.BAD_SCHEMA
        else:
            try:
                program = compile_program(writer.node, self._reader, self._layout)
            except SchemaError:
                program = Reason.INCOMPATIBLE_SCHEMA
        self._programs[schema_id] = program
        return program

    def _scan(
        self,
        data: NDArray[np.uint8],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int32],
        status: NDArray[np.uint8],
        ids: NDArray[np.int32],
    ) -> tuple[int, int, bool]:
        readable, first, same = kernels.scan_headers(
            readonly(data),
            readonly(starts),
            readonly(lengths),
            self._limits.max_record_bytes,
            status,
            ids,
        )
        return readable, int(first), same

    def _run(
        self,
        data: NDArray[np.uint8],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int32],
        outputs: _Outputs,
        schema_id: int,
        program: Program,
        constants_at: int,
    ) -> None:
        kernels.decode_records(
            readonly(data),
            readonly(starts),
            readonly(lengths),
            outputs.ids,
            schema_id,
            program.code,
            program.tables,
            self._limits.max_string_bytes,
            self._limits.max_nesting,
            self._limits.max_items,
            constants_at,
            outputs.status,
            outputs.booleans,
            outputs.ints,
            outputs.longs,
            outputs.floats,
            outputs.doubles,
            outputs.valid,
            outputs.text_starts,
            outputs.text_lengths,
        )


class _Outputs:
    """The matrices one batch is decoded into: one row per column, nulls to begin with."""

    __slots__ = (
        "booleans",
        "doubles",
        "floats",
        "ids",
        "ints",
        "longs",
        "status",
        "text_lengths",
        "text_starts",
        "valid",
    )

    def __init__(self, layout: Layout, count: int) -> None:
        rows = layout.rows
        self.status = np.zeros(count, np.uint8)
        self.ids = np.empty(count, np.int32)
        self.booleans = np.zeros((rows["boolean"], count), np.bool_)
        self.ints = np.zeros((rows["int"], count), np.int32)
        self.longs = np.zeros((rows["long"], count), np.int64)
        self.floats = np.zeros((rows["float"], count), np.float32)
        self.doubles = np.zeros((rows["double"], count), np.float64)
        self.valid = np.zeros((layout.marks, count), np.bool_)
        self.text_starts = np.zeros((rows["text"], count), np.int64)
        self.text_lengths = np.full((rows["text"], count), -1, np.int32)

    def columns(self, layout: Layout, data: NDArray[np.uint8]) -> dict[str, Column]:
        # Splitting a matrix into its rows at once costs half of indexing it row by row.
        numbers = {
            "boolean": list(self.booleans),
            "int": list(self.ints),
            "long": list(self.longs),
            "float": list(self.floats),
            "double": list(self.doubles),
        }
        valid = list(self.valid)
        starts = list(self.text_starts)
        lengths = list(self.text_lengths)
        columns: dict[str, Column] = {}
        for plan in layout.columns:
            slot = plan.slot
            if plan.store == "text":
                columns[plan.name] = StringColumn(data, starts[slot], lengths[slot])
            else:
                columns[plan.name] = NumberColumn(numbers[plan.store][slot], valid[plan.mark])
        return columns
