"""Compile a writer and a reader schema into a decode program, and lay out the reader's columns."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas import _opcodes as op
from schemas.compatibility import names_match, promotes, writer_field_of
from schemas.model import NO_DEFAULT, FieldNode, Node, SchemaError
from schemas.reasons import Limits, Reason

__all__ = [
    "ColumnPlan",
    "IncompatibleError",
    "Layout",
    "Program",
    "Store",
    "compile_program",
    "default_fits",
    "matches",
    "plan_layout",
    "resolve_branch",
    "without_null",
]

Store: TypeAlias = Literal["boolean", "int", "long", "float", "double", "text"]
"""Which output matrix a column lives in."""

_STORES: Final[dict[str, Store]] = {
    "boolean": "boolean",
    "null": "boolean",
    "int": "int",
    "enum": "int",
    "long": "long",
    "float": "float",
    "double": "double",
    "string": "text",
    "bytes": "text",
    "fixed": "text",
}
_READS: Final[dict[tuple[str, str], int]] = {
    ("boolean", "boolean"): op.BOOLEAN,
    ("int", "int"): op.INT,
    ("int", "long"): op.INT_LONG,
    ("int", "float"): op.INT_FLOAT,
    ("int", "double"): op.INT_DOUBLE,
    ("long", "long"): op.LONG,
    ("long", "float"): op.LONG_FLOAT,
    ("long", "double"): op.LONG_DOUBLE,
    ("float", "float"): op.FLOAT,
    ("float", "double"): op.FLOAT_DOUBLE,
    ("double", "double"): op.DOUBLE,
    ("string", "string"): op.STRING,
    # Text that becomes bytes is still checked: the writer promised UTF-8.
    ("string", "bytes"): op.STRING,
    ("bytes", "string"): op.STRING,
    ("bytes", "bytes"): op.BYTES,
}
_SKIPS: Final[dict[str, tuple[int, int]]] = {
    "int": (op.SKIP_INT, 0),
    "long": (op.SKIP_LONG, 0),
    "float": (op.SKIP_SIZE, 4),
    "double": (op.SKIP_SIZE, 8),
    "bytes": (op.SKIP_BYTES, 0),
    "string": (op.SKIP_STRING, 0),
    "boolean": (op.SKIP_BOOLEAN, 0),
}
_FUSIBLE: Final = frozenset(
    {*_READS.values(), *(code for code, _ in _SKIPS.values()), op.FIXED, op.ENUM, op.SKIP_ENUM}
)
_SETS: Final[dict[Store, int]] = {
    "boolean": op.SET_BOOLEAN,
    "int": op.SET_INT,
    "long": op.SET_LONG,
    "float": op.SET_FLOAT,
    "double": op.SET_DOUBLE,
}


class IncompatibleError(SchemaError):
    """No record of the writer's schema can be read with the reader's."""


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """One column: its dotted name, type without null, matrix row and validity row."""

    name: str
    node: Node
    nullable: bool
    store: Store
    slot: int
    mark: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a reader schema and how many rows each output matrix needs."""

    columns: tuple[ColumnPlan, ...]
    rows: Mapping[Store, int]
    marks: int
    by_name: Mapping[str, ColumnPlan]


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled pair: instructions, jump and symbol tables, constant strings."""

    code: NDArray[np.int64]
    tables: NDArray[np.int64]
    constants: bytes


def without_null(node: Node) -> tuple[Node, bool]:
    """Return (the one other branch, True) for a union with null, else (node, False).

    Raises:
        SchemaError: the union has several branches beside null, so it is no column.
    """
    if node.kind != "union":
        return node, False
    others = [branch for branch in node.branches if branch.kind != "null"]
    nullable = len(others) < len(node.branches)
    if not others:
        return Node("null"), nullable
    if len(others) > 1:
        msg = f"{node.label()} has several types; a column holds null and one type"
        raise SchemaError(msg)
    return others[0], nullable


def plan_layout(reader: Node, limits: Limits) -> Layout:
    """Return the columns of a reader schema: nested records flattened, ``a.b`` for field b of a.

    Raises:
        SchemaError: not a record, or a field is an array, a map, a union of several types, or a
            record within itself; all such fields are listed.
    """
    if reader.kind != "record":
        msg = f"decoding into columns: expected a record, was {reader.label()}"
        raise SchemaError(msg)
    rows: dict[Store, int] = dict.fromkeys(_STORES.values(), 0)
    columns: list[ColumnPlan] = []
    problems: list[str] = []

    def add(
        record: Node, prefix: str, nullable_above: bool, open_records: tuple[Node, ...]
    ) -> None:
        for item in record.fields:
            name = prefix + item.name
            try:
                node, nullable = without_null(item.type)
            except SchemaError as e:
                problems.append(f"{name}: {e}")
                continue
            nullable = nullable or nullable_above
            if node.kind == "record":
                if node in open_records or len(open_records) > limits.max_nesting:
                    problems.append(f"{name}: {node.label()} holds itself, which no columns can")
                else:
                    add(node, f"{name}.", nullable, (*open_records, node))
            elif node.kind in ("array", "map"):
                problems.append(f"{name}: {node.kind} is not a column; use decode_one for it")
            else:
                store = _STORES[node.kind]
                marks = sum(1 for column in columns if column.store != "text")
                plan = ColumnPlan(name, node, nullable, store, rows[store], marks)
                rows[store] += 1
                columns.append(plan)

    add(reader, "", False, (reader,))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        msg = (
            f"decoding {reader.label()} into columns: {len(problems)} field(s) cannot be:\n{listed}"
        )
        raise SchemaError(msg)
    marks = sum(1 for column in columns if column.store != "text")
    return Layout(tuple(columns), rows, marks, {column.name: column for column in columns})


def compile_program(writer: Node, reader: Node, layout: Layout) -> Program:
    """Compile what reads `writer`'s bytes into the columns of `reader`.

    Raises:
        IncompatibleError: no record of this writer can be read, for example because a field without
            default is missing; what only some records do (a union branch or enum symbol without a
            place) becomes a refusal of those records.
    """
    return _Compiler(layout).compile(writer, reader)


@dataclass(slots=True)
class _Compiler:
    layout: Layout
    code: list[list[int]] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)
    constants: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, Node]] = field(default_factory=list)
    subroutines: dict[int, int] = field(default_factory=dict)

    def compile(self, writer: Node, reader: Node) -> Program:
        if writer.kind == "union":
            self._union(writer, reader, "")
        else:
            self._resolve(writer, reader, "", nested=False)
        self._emit(op.END)
        while self.pending:
            at, node = self.pending.pop()
            if id(node) not in self.subroutines:
                self.subroutines[id(node)] = len(self.code)
                for item in node.fields:
                    self._skip(item.type)
                self._emit(op.RETURN)
            self.code[at][1] = self.subroutines[id(node)]
        return Program(
            np.array(self.code, np.int64),
            np.array(self.tables or [0], np.int64),
            bytes(self.constants),
        )

    def _emit(self, *instruction: int) -> int:
        self.code.append([*instruction, *[0] * (op.OPERANDS - len(instruction))])
        return len(self.code) - 1

    def _resolve(self, writer: Node, reader: Node, name: str, *, nested: bool = True) -> None:
        """Read one value of the writer's type into the column or columns called `name`."""
        if writer.kind == "union":
            self._union(writer, reader, name)
            return
        target = resolve_branch(writer, reader)
        if target is None:
            msg = f"{name or 'the record'}: {writer.label()} cannot be read as {reader.label()}"
            raise IncompatibleError(msg)
        if target.kind == "record":
            if nested:
                self._emit(op.ENTER)
            self._record(writer, target, f"{name}." if name else "")
            if nested:
                self._emit(op.LEAVE)
            return
        if target.kind == "null":
            return
        plan = self.layout.by_name[name]
        if target.kind == "enum":
            self._enum(writer, target, plan)
        elif target.kind == "fixed":
            self._emit(op.FIXED, plan.slot, writer.size)
        else:
            self._emit(_READS[writer.kind, target.kind], plan.slot, plan.mark)

    def _record(self, writer: Node, reader: Node, prefix: str) -> None:
        filled: dict[str, FieldNode] = {}
        for item in reader.fields:
            source = writer_field_of(item, writer)
            if source is None:
                if item.default is NO_DEFAULT:
                    msg = f"{prefix}{item.name}: not in the writer, and the reader has no default"
                    raise IncompatibleError(msg)
                self._default(item.type, item.default, prefix + item.name)
            elif source.name in filled:
                msg = f"{prefix}{item.name}: the writer's {source.name!r} fills another field too"
                raise IncompatibleError(msg)
            else:
                filled[source.name] = item
        for written in writer.fields:
            if written.name in filled:
                wanted = filled[written.name]
                self._resolve(written.type, wanted.type, prefix + wanted.name)
            else:
                self._skip(written.type)

    def _union(self, writer: Node, reader: Node, name: str) -> None:
        null_at = _null_of_two(writer)
        if null_at is not None and resolve_branch(Node("null"), reader) is not None:
            at = self._open_nullable(null_at)
            try:
                self._resolve(writer.branches[1 - null_at], reader, name, nested=bool(name))
            except IncompatibleError:
                del self.code[at + 1 :]
                self.pending = [item for item in self.pending if item[0] <= at]
                self._emit(op.FAIL, int(Reason.UNRESOLVABLE))
            self._close_nullable(at, null_at)
            return
        base = self._open_union(writer)
        ends = []
        readable = 0
        for index, branch in enumerate(writer.branches):
            self.tables[base + index] = len(self.code)
            mark = len(self.code), len(self.pending)
            try:
                self._resolve(branch, reader, name, nested=bool(name))
                readable += 1
            except IncompatibleError:
                del self.code[mark[0] :]
                del self.pending[mark[1] :]
                self._emit(op.FAIL, int(Reason.UNRESOLVABLE))
            ends.append(self._emit(op.JUMP))
        if not readable:
            msg = f"{name or 'the record'}: {writer.label()} cannot be read as {reader.label()}"
            raise IncompatibleError(msg)
        for at in ends:
            self.code[at][1] = len(self.code)

    def _open_nullable(self, null_at: int) -> int:
        return self._emit(op.NULLABLE, 0, 2 * null_at)

    def _close_nullable(self, at: int, null_at: int) -> None:
        if len(self.code) == at + 2 and self.code[at + 1][0] in _FUSIBLE:
            # One operation does it: null costs it a test instead of an instruction of its own.
            (_, body) = self.code[at:]
            body[0] += op.NULL_SECOND if null_at else op.NULL_FIRST
            self.code[at:] = [body]
        else:
            self.code[at][1] = len(self.code)

    def _open_union(self, writer: Node) -> int:
        base = len(self.tables)
        self.tables += [0] * len(writer.branches)
        self._emit(op.UNION, len(writer.branches), base)
        return base

    def _enum(self, writer: Node, reader: Node, plan: ColumnPlan) -> None:
        base = len(self.tables)
        places = {symbol: place for place, symbol in enumerate(reader.symbols)}
        other = -1 if reader.symbol_default is None else places[reader.symbol_default]
        self.tables += [places.get(symbol, other) for symbol in writer.symbols]
        self._emit(op.ENUM, plan.slot, plan.mark, len(writer.symbols), base)

    def _skip(self, node: Node) -> None:
        if node.kind == "null":
            return
        if node.kind in _SKIPS:
            self._emit(*_SKIPS[node.kind])
        elif node.kind == "fixed":
            self._emit(op.SKIP_SIZE, node.size)
        elif node.kind == "enum":
            self._emit(op.SKIP_ENUM, len(node.symbols))
        elif node.kind == "record":
            # A subroutine, not a copy: a schema that names one record many times over, or within
            # itself, must not blow the program up.
            self.pending.append((self._emit(op.CALL), node))
        elif node.kind == "union" and (null_at := _null_of_two(node)) is not None:
            at = self._open_nullable(null_at)
            self._skip(node.branches[1 - null_at])
            self._close_nullable(at, null_at)
        elif node.kind == "union":
            base = self._open_union(node)
            ends = []
            for index, branch in enumerate(node.branches):
                self.tables[base + index] = len(self.code)
                self._skip(branch)
                ends.append(self._emit(op.JUMP))
            for at in ends:
                self.code[at][1] = len(self.code)
        else:
            begin = self._emit(op.BLOCKS)
            if node.kind == "map":
                self._emit(op.SKIP_STRING)
            self._skip(node.item)
            self._emit(op.NEXT, begin + 1, len(self.code) + 1)
            self.code[begin][1] = len(self.code)

    def _default(self, node: Node, default: object, name: str) -> None:
        """Set the column or columns called `name` to a default; null is what they hold already."""
        if node.kind == "union":
            fitting = (branch for branch in node.branches if default_fits(branch, default))
            node = next(fitting, node.branches[0])
        if node.kind == "null":
            return
        if node.kind == "record":
            given = default if isinstance(default, dict) else {}
            for item in node.fields:
                value = given.get(item.name, item.default)
                self._default(item.type, value, f"{name}.{item.name}")
            return
        plan = self.layout.by_name[name]
        if plan.store == "text":
            raw = str(default).encode("utf-8" if node.kind == "string" else "latin-1")
            self._emit(op.SET_STRING, plan.slot, len(self.constants), len(raw))
            self.constants += raw
            return
        if node.kind == "enum":
            value = node.symbols.index(str(default))
        elif node.kind in ("float", "double"):
            number = default if isinstance(default, int | float) else 0.0
            (value,) = struct.unpack("<q", struct.pack("<d", float(number)))
        else:
            value = int(default) if isinstance(default, int) else 0
        self._emit(_SETS[plan.store], plan.slot, plan.mark, value)


def _null_of_two(union: Node) -> int | None:
    """Return the index of null in a union of null and one other type, else None."""
    kinds = [branch.kind for branch in union.branches]
    return kinds.index("null") if len(kinds) == 2 and "null" in kinds else None


def default_fits(node: Node, default: object) -> bool:
    """Return whether a JSON default is one of a union branch's; a number fits the first number."""
    if node.kind == "null":
        return default is None
    if node.kind == "boolean":
        return isinstance(default, bool)
    if node.kind in ("int", "long"):
        return isinstance(default, int) and not isinstance(default, bool)
    if node.kind in ("float", "double"):
        return isinstance(default, int | float) and not isinstance(default, bool)
    if node.kind in ("record", "map"):
        return isinstance(default, dict)
    if node.kind == "array":
        return isinstance(default, list)
    return isinstance(default, str)


def resolve_branch(writer: Node, reader: Node) -> Node | None:
    """Return the reader's type for a writer's type: the first branch that matches, or None."""
    if reader.kind == "union":
        return next((b for b in reader.branches if matches(writer, b)), None)
    return reader if matches(writer, reader) else None


def matches(writer: Node, reader: Node) -> bool:
    """Return whether two types match at their outermost level, as a union chooses its branch."""
    if writer.kind != reader.kind:
        return promotes(writer.kind, reader.kind)
    if writer.kind == "fixed" and writer.size != reader.size:
        return False
    return not writer.name or names_match(writer, reader)
