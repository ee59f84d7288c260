"""Functions that write Avro values of one schema, made once per schema.

fastavro tries a value on every branch of a union, which for a record of many nullable fields costs
more than writing it. Here a type and null, the only union that our contracts have, is a look at
whether the value is None. A writer is one function, its source made from the schema: with a
function for each type, half of the time of a record of short fields was calls.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

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
    if 1 << 35 <= rest < 1 << 42:
        # Times in milliseconds since 1970 are six bytes: spelled out, a third of the time.
        return bytes(
            (
                rest & 0x7F | 0x80,
                rest >> 7 & 0x7F | 0x80,
                rest >> 14 & 0x7F | 0x80,
                rest >> 21 & 0x7F | 0x80,
                rest >> 28 & 0x7F | 0x80,
                rest >> 35,
            )
        )
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_SMALL: Final = tuple(_zigzag(number) for number in range(1024))
# Lengths, counts, enum symbols: nearly every integer in a record is one of these.

_BOOLEANS: Final = {False: 0, True: 1}

_INTEGERS: Final = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}

_KEYS: Final = 256
# Keys that a map's writer remembers: a few times the features of a model; each costs some 100
# bytes.

_DEEPEST: Final = 30
# Levels of indentation: Python takes no more than 20 loops within each other, each two levels.

_KEY_SETS: Final = 16
# The same for maps of doubles, by all their keys: one for each model and job.


def value_writer(node: Node) -> ValueWriter | None:
    """Return the writer of a type; None for one that fastavro writes: recursive, deep, wide unions.

    Wide is a union of more than null and one other type.
    """
    source = _Source()
    if not source.value(node, "value", 1, ()):
        return None
    return source.compiled()


class _Source:
    """The source of one writer: lines of Python, and what their names stand for.

    Each method adds what writes a value of a node, held by variable `at`, to `out`; all return
    whether they can.
    """

    def __init__(self) -> None:
        self._lines = ["def write(value, out):"]
        self._variables = 0
        self._names: dict[str, Any] = {
            "small": _SMALL,
            "zigzag": _zigzag,
            "misfit": _misfit,
            "float32": _FLOAT,
            "float64": _DOUBLE,
            "booleans": _BOOLEANS,
        }

    def compiled(self) -> ValueWriter:
        # Nothing of a schema's text is in the source but as Python literals.
        exec("\n".join(self._lines), self._names)  # noqa: S102
        writer: ValueWriter = self._names["write"]
        return writer

    def value(self, node: Node, at: str, depth: int, open_records: tuple[Node, ...]) -> bool:
        kind = node.kind
        if depth > _DEEPEST:
            return False
        if kind in _SIMPLE:
            self._add(depth, *(line.format(at=at) for line in _SIMPLE[kind]))
        elif kind in _INTEGERS:
            low, high = _INTEGERS[kind]
            expected = f"an integer from {low} to {high}"
            self._add(
                depth,
                f"if not {low} <= {at} <= {high}: misfit({expected!r}, {at}, OverflowError)",
                f"out += small[{at}] if 0 <= {at} < 1024 else zigzag({at})",
            )
        elif kind == "enum":
            codes = {symbol: _zigzag(code) for code, symbol in enumerate(node.symbols)}
            self._add(depth, f"out += {self._named(codes)}[{at}]")
        elif kind == "fixed":
            self._add(
                depth,
                f"if len({at}) != {node.size}: misfit('{node.size} bytes', {at})",
                f"out += {at}",
            )
        elif kind == "record":
            return node not in open_records and self._record(node, at, depth, open_records)
        elif kind == "union":
            return self._nullable(node, at, depth, open_records)
        elif kind == "map":
            return self._map(node.item, at, depth, open_records)
        else:
            return self._array(node.item, at, depth, open_records)
        return True

    def _nullable(self, node: Node, at: str, depth: int, open_records: tuple[Node, ...]) -> bool:
        kinds = [branch.kind for branch in node.branches]
        if len(kinds) != 2 or kinds.count("null") != 1:
            return False
        null_at = kinds.index("null")
        null, other = _SMALL[null_at], _SMALL[1 - null_at]
        inner = node.branches[1 - null_at]
        if inner.kind == "double":
            # The numbers of a record are most of its values.
            marked = self._named(struct.Struct("<Bd").pack)
            self._add(depth, f"out += {null!r} if {at} is None else {marked}({other[0]}, {at})")
            return True
        self._add(depth, f"if {at} is None: out += {null!r}", "else:")
        self._add(depth + 1, f"out += {other!r}")
        return self.value(inner, at, depth + 1, open_records)

    def _array(self, item: Node, at: str, depth: int, open_records: tuple[Node, ...]) -> bool:
        one = self._variable()
        # A tuple is a branch of a union and its value, as fastavro takes them.
        self._add(
            depth,
            f"if isinstance({at}, tuple): misfit('a list', {at}, TypeError)",
            f"if {at}:",
        )
        self._add(depth + 1, *_length(at), f"for {one} in {at}:")
        if not self.value(item, one, depth + 2, open_records):
            return False
        self._add(depth, "out.append(0)")
        return True

    def _map(self, item: Node, at: str, depth: int, open_records: tuple[Node, ...]) -> bool:
        if item.kind == "double":
            self._add(depth, f"if {at}: {self._named(_Doubles().write)}({at}, out)")
        else:
            key, one, keys = self._variable(), self._variable(), self._named(_Keys())
            self._add(depth, f"if {at}:")
            self._add(depth + 1, *_length(at), f"for {key}, {one} in {at}.items():")
            self._add(depth + 2, f"out += {keys}[{key}]")
            if not self.value(item, one, depth + 2, open_records):
                return False
        self._add(depth, "out.append(0)")
        return True

    def _record(self, node: Node, at: str, depth: int, open_records: tuple[Node, ...]) -> bool:
        defaults = {
            field.name: default_value(field.type, field.default)
            for field in node.fields
            if field.default is not NO_DEFAULT
        }
        names = frozenset(field.name for field in node.fields)

        def complete(record: Mapping[str, Any]) -> dict[str, Any]:
            unknown = record.keys() - names
            if unknown:
                msg = f"{node.label()} has no field {sorted(unknown)[0]!r}"
                raise ValueError(msg)
            return defaults | dict(record)

        # With as many fields of other names, one of its own is missing.
        self._add(depth, f"if len({at}) != {len(names)}: {at} = {self._named(complete)}({at})")
        for field in node.fields:
            one = self._variable()
            self._add(depth, f"{one} = {at}[{field.name!r}]")
            if not self.value(field.type, one, depth, (*open_records, node)):
                return False
        return True

    def _add(self, depth: int, *lines: str) -> None:
        self._lines += ["    " * depth + line for line in lines]

    def _named(self, value: Any) -> str:
        name = f"given_{len(self._names)}"
        self._names[name] = value
        return name

    def _variable(self) -> str:
        self._variables += 1
        return f"at_{self._variables}"


def _length(at: str) -> tuple[str, str]:
    return f"size = len({at})", "out += small[size] if size < 1024 else zigzag(size)"


_SIMPLE: Final[dict[str, tuple[str, ...]]] = {
    "null": ("if {at} is not None: misfit('null', {at})",),
    "boolean": ("out.append(booleans[{at}])",),
    "float": ("out += float32({at})",),
    "double": ("out += float64({at})",),
    "bytes": (*_length("{at}"), "out += {at}"),
    "string": ("raw = {at}.encode()", *_length("raw"), "out += raw"),
}


def _misfit(expected: str, value: object, kind: type[Exception] = ValueError) -> NoReturn:
    msg = f"expected {expected}, was {value!r}"
    raise kind(msg)


def _text(text: str) -> bytes:
    raw = text.encode()
    return _zigzag(len(raw)) + raw


class _Keys(dict[str, bytes]):
    """Keys of maps as they are written; most maps have the same ones every time."""

    def __missing__(self, key: str) -> bytes:
        encoded = _text(key)
        if len(self) < _KEYS:
            self[key] = encoded
        return encoded


class _Doubles:
    """Maps of doubles: with the same keys as before, all values at once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[Callable[..., bytes], list[Any]]] = {}

    def write(self, values: Mapping[str, float], out: bytearray) -> None:
        keys = tuple(values)
        known = self._known.get(keys)
        if known is None:
            encoded = [_text(key) for key in keys]
            parts = "".join(f"{len(key)}sd" for key in encoded)
            arguments: list[Any] = [None] * (2 * len(keys))
            arguments[::2] = encoded
            known = struct.Struct(f"<{parts}").pack, arguments
            if len(self._known) < _KEY_SETS:
                self._known[keys] = known
        pack, template = known
        arguments = template.copy()
        arguments[1::2] = values.values()
        out += _SMALL[len(keys)] if len(keys) < 1024 else _zigzag(len(keys))
        out += pack(*arguments)
