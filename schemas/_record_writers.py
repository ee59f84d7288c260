"""Functions that write Avro values of one schema, made once per schema.

fastavro tries a value on every branch of a union, which for a record of many nullable fields costs
more than writing it. Here a type and null, the only union that our contracts have, is a look at
whether the value is None.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from schemas._defaults import default_value
from schemas.model import NO_DEFAULT, Node

__all__ = ["ValueWriter", "value_writer"]

ValueWriter = Callable[[Any, bytearray], None]
"""Appends one value; raises TypeError, ValueError, KeyError or the like for one that does not fit,
OverflowError for an integer out of range (which fastavro would write so that nobody can read it).
"""

_FLOAT: Final = struct.Struct("<f").pack
_DOUBLE: Final = struct.Struct("<d").pack


def _zigzag(number: int) -> bytes:
    number = int(number)
    rest = number << 1 if number >= 0 else ((-number) << 1) - 1
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_SMALL: Final = tuple(_zigzag(number) for number in range(1024))
# Lengths, counts, enum symbols: nearly every integer in a record is one of these.

_BOOLEANS: Final = {False: 0, True: 1}

_KEYS: Final = 256
# Keys that a map's writer remembers: a few times the features of a model; each costs some 100
# bytes.


def value_writer(node: Node) -> ValueWriter | None:
    """Return the writer of a type; None for one that needs fastavro (recursive, wide unions)."""
    return _writer(node, ())


def _writer(node: Node, open_records: tuple[Node, ...]) -> ValueWriter | None:
    if node.kind in _PRIMITIVES:
        return _PRIMITIVES[node.kind]
    if node.kind == "enum":
        return _enum(node)
    if node.kind == "fixed":
        return _fixed(node.size)
    if node.kind == "record":
        return None if node in open_records else _record(node, (*open_records, node))
    if node.kind == "union":
        return _nullable(node, open_records)
    item = _writer(node.item, open_records)
    if item is None:
        return None
    return _map(item) if node.kind == "map" else _array(item)


def _null(value: Any, out: bytearray) -> None:
    if value is not None:
        msg = f"expected null, was {value!r}"
        raise ValueError(msg)


def _boolean(value: Any, out: bytearray) -> None:
    out.append(_BOOLEANS[value])


def _integer(low: int, high: int) -> ValueWriter:
    def write(value: Any, out: bytearray) -> None:
        if not low <= value <= high:
            msg = f"expected an integer from {low} to {high}, was {value!r}"
            raise OverflowError(msg)
        out += _SMALL[value] if 0 <= value < 1024 else _zigzag(value)

    return write


def _float(value: Any, out: bytearray) -> None:
    out += _FLOAT(value)


def _double(value: Any, out: bytearray) -> None:
    out += _DOUBLE(value)


def _bytes(value: Any, out: bytearray) -> None:
    size = len(value)
    out += _SMALL[size] if size < 1024 else _zigzag(size)
    out += value


def _string(value: Any, out: bytearray) -> None:
    raw = value.encode()
    size = len(raw)
    out += _SMALL[size] if size < 1024 else _zigzag(size)
    out += raw


_PRIMITIVES: Final[dict[str, ValueWriter]] = {
    "null": _null,
    "boolean": _boolean,
    "int": _integer(-(2**31), 2**31 - 1),
    "long": _integer(-(2**63), 2**63 - 1),
    "float": _float,
    "double": _double,
    "bytes": _bytes,
    "string": _string,
}


def _enum(node: Node) -> ValueWriter:
    codes = {symbol: _zigzag(code) for code, symbol in enumerate(node.symbols)}

    def write(value: Any, out: bytearray) -> None:
        out += codes[value]

    return write


def _fixed(size: int) -> ValueWriter:
    def write(value: Any, out: bytearray) -> None:
        if len(value) != size:
            msg = f"expected {size} bytes, was {len(value)}"
            raise ValueError(msg)
        out += value

    return write


def _nullable(node: Node, open_records: tuple[Node, ...]) -> ValueWriter | None:
    kinds = [branch.kind for branch in node.branches]
    if len(kinds) != 2 or kinds.count("null") != 1:
        return None
    null_at = kinds.index("null")
    inner = _writer(node.branches[1 - null_at], open_records)
    if inner is None:
        return None
    null, other = _SMALL[null_at], _SMALL[1 - null_at]
    if node.branches[1 - null_at].kind == "double":
        # Spelled out: the numbers of a record are most of its values.
        pack = struct.Struct("<Bd").pack
        mark = other[0]

        def write_double(value: Any, out: bytearray) -> None:
            out += null if value is None else pack(mark, value)

        return write_double

    def write(value: Any, out: bytearray) -> None:
        if value is None:
            out += null
        else:
            out += other
            inner(value, out)

    return write


def _array(item: ValueWriter) -> ValueWriter:
    def write(values: Any, out: bytearray) -> None:
        if isinstance(values, tuple):
            # A branch of a union and its value, as fastavro takes them.
            msg = "expected a list, was a tuple"
            raise TypeError(msg)
        if values:
            out += _SMALL[len(values)] if len(values) < 1024 else _zigzag(len(values))
            for value in values:
                item(value, out)
        out.append(0)

    return write


def _map(item: ValueWriter) -> ValueWriter:
    known: dict[str, bytes] = {}

    def encoded(key: str) -> bytes:
        out = bytearray()
        _string(key, out)
        # Most maps have the same keys every time; what does not fit is encoded again.
        if len(known) < _KEYS:
            known[key] = bytes(out)
        return bytes(out)

    def write(values: Any, out: bytearray) -> None:
        if values:
            out += _SMALL[len(values)] if len(values) < 1024 else _zigzag(len(values))
            for key, value in values.items():
                out += known.get(key) or encoded(key)
                item(value, out)
        out.append(0)

    def write_doubles(values: Any, out: bytearray) -> None:
        if values:
            out += _SMALL[len(values)] if len(values) < 1024 else _zigzag(len(values))
            for key, value in values.items():
                out += known.get(key) or encoded(key)
                out += _DOUBLE(value)
        out.append(0)

    return write_doubles if item is _double else write


def _record(node: Node, open_records: tuple[Node, ...]) -> ValueWriter | None:
    fields: list[tuple[str, ValueWriter]] = []
    defaults: dict[str, Any] = {}
    for field in node.fields:
        writer = _writer(field.type, open_records)
        if writer is None:
            return None
        fields.append((field.name, writer))
        if field.default is not NO_DEFAULT:
            defaults[field.name] = default_value(field.type, field.default)
    names = frozenset(name for name, _ in fields)

    def write(record: Any, out: bytearray) -> None:
        if record.keys() != names:
            unknown = record.keys() - names
            if unknown:
                msg = f"{node.label()} has no field {sorted(unknown)[0]!r}"
                raise ValueError(msg)
            record = defaults | dict(record)
        for name, writer in fields:
            writer(record[name], out)

    return write
