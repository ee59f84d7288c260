"""Avro schemas as a checked tree: names resolved, defaults verified, size and depth bounded.

Everything that reasons about schemas (compatibility, the compilers of the columnar decoder and
encoder, sensitivity) works on this tree, so that names, aliases and namespaces are resolved in one
place, as Avro 1.11 defines them. `canonical_form` and `fingerprint64` are those of the section
"Parsing Canonical Form for Schemas".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from schemas.errors import ConfigurationError
from schemas.reasons import Limits

__all__ = [
    "NO_DEFAULT",
    "PRIMITIVES",
    "FieldNode",
    "Json",
    "Node",
    "SchemaError",
    "canonical_form",
    "fingerprint64",
    "parse_schema",
]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A JSON value as `json.loads` returns it."""

PRIMITIVES: Final = frozenset(
    {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)
"""Names of the primitive types."""

_NAMED: Final = frozenset({"record", "enum", "fixed", "error"})
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_RESERVED: Final = frozenset(
    {
        "type",
        "name",
        "namespace",
        "doc",
        "aliases",
        "fields",
        "symbols",
        "size",
        "items",
        "values",
        "default",
        "order",
        "logicalType",
    }
)
_INT_RANGE: Final = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}


class SchemaError(ConfigurationError):
    """A schema is not valid Avro, or exceeds the limits; the message names the place."""


class _NoDefault:
    def __repr__(self) -> str:
        return "NO_DEFAULT"


NO_DEFAULT: Final = _NoDefault()
"""Stands for "this field has no default", which is not the same as a default of null."""


@dataclass(eq=False, slots=True)
class FieldNode:
    """One field of a record; `aliases` are plain names, `default` is JSON or `NO_DEFAULT`."""

    name: str
    type: Node
    default: Json | _NoDefault = NO_DEFAULT
    aliases: tuple[str, ...] = ()
    doc: str = ""
    properties: dict[str, Json] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Node:
    """One type. A named type that occurs again is the same object, so trees may be recursive.

    `name` and `aliases` are full names. `items` is the item type of an array and the value type of
    a map, `branches` those of a union, `logical` the logical type's name where one is given.
    """

    kind: str
    name: str = ""
    aliases: tuple[str, ...] = ()
    fields: tuple[FieldNode, ...] = ()
    symbols: tuple[str, ...] = ()
    symbol_default: str | None = None
    size: int = 0
    items: Node | None = None
    branches: tuple[Node, ...] = ()
    logical: str | None = None
    doc: str = ""
    properties: dict[str, Json] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """Return the name without its namespace."""
        return self.name.rpartition(".")[2]

    @property
    def item(self) -> Node:
        """Return the item type of an array or the value type of a map."""
        if self.items is None:
            msg = f"type {self.kind!r} has no items"
            raise SchemaError(msg)
        return self.items

    def label(self) -> str:
        """Return the type as a person writes it: ``record riskstream.Alert``, ``[null, long]``."""
        if self.kind == "union":
            return "[" + ", ".join(branch.label() for branch in self.branches) + "]"
        if self.kind in ("array", "map"):
            return f"{self.kind} of {self.item.label()}"
        return f"{self.kind} {self.name}" if self.name else self.kind


def parse_schema(schema: str | Json, limits: Limits | None = None) -> Node:
    """Parse a schema from its JSON text or its parsed JSON.

    A bare string is JSON text when it starts with ``{``, ``[`` or ``"``, else a primitive's name.

    Raises:
        SchemaError: not JSON, not Avro, a default that does not fit its field, or over the limits.
    """
    bounds = limits or Limits()
    if isinstance(schema, str):
        text = schema.strip()
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > bounds.max_schema_bytes:
            msg = f"schema of {size} bytes exceeds the limit of {bounds.max_schema_bytes}"
            raise SchemaError(msg)
        if text[:1] in ("{", "[", '"'):
            try:
                schema = json.loads(text)
            except (ValueError, RecursionError) as e:
                msg = f"parsing a schema: not JSON: {type(e).__name__}: {e}"
                raise SchemaError(msg) from e
    return _Parser(bounds).parse(schema)


class _Parser:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._names: dict[str, Node] = {}
        self._nodes = 0
        self._pending: list[tuple[FieldNode, str]] = []

    def parse(self, schema: Json) -> Node:
        node = self._type(schema, "", "", 0)
        # Defaults are checked last: the type of a default may be named before it is complete.
        for field_node, path in self._pending:
            problem = _default_problem(field_node.type, field_node.default, 0)
            if problem:
                msg = f"{path}: default {field_node.default!r} does not fit: {problem}"
                raise SchemaError(msg)
        return node

    def _type(self, schema: Json, namespace: str, path: str, depth: int) -> Node:
        self._nodes += 1
        if depth > self._limits.max_nesting:
            msg = f"{path or 'schema'}: nested deeper than the limit of {self._limits.max_nesting}"
            raise SchemaError(msg)
        if self._nodes > self._limits.max_schema_nodes:
            msg = f"schema has more than the limit of {self._limits.max_schema_nodes} types"
            raise SchemaError(msg)
        if isinstance(schema, str):
            return self._reference(schema, namespace, path)
        if isinstance(schema, list):
            return self._union(schema, namespace, path, depth)
        if isinstance(schema, dict):
            return self._object(schema, namespace, path, depth)
        msg = f"{path or 'schema'}: expected a name, an object or a union, was {schema!r}"
        raise SchemaError(msg)

    def _reference(self, name: str, namespace: str, path: str) -> Node:
        if name in PRIMITIVES:
            return Node(name)
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        node = self._names.get(full)
        if node is None:
            msg = f"{path or 'schema'}: unknown type {name!r}"
            raise SchemaError(msg)
        return node

    def _union(self, schema: list[Json], namespace: str, path: str, depth: int) -> Node:
        branches = []
        seen = set()
        for index, item in enumerate(schema):
            branch = self._type(item, namespace, f"{path}[{index}]", depth + 1)
            key = branch.name or branch.kind
            if branch.kind == "union":
                msg = f"{path}[{index}]: a union may not directly hold a union"
                raise SchemaError(msg)
            if key in seen:
                msg = f"{path}[{index}]: a union may hold {key!r} only once"
                raise SchemaError(msg)
            seen.add(key)
            branches.append(branch)
        return Node("union", branches=tuple(branches))

    def _object(self, schema: dict[str, Json], namespace: str, path: str, depth: int) -> Node:
        kind = schema.get("type")
        if isinstance(kind, dict | list):
            return self._type(kind, namespace, path, depth + 1)
        if not isinstance(kind, str):
            msg = f"{path or 'schema'}: expected a 'type', was {kind!r}"
            raise SchemaError(msg)
        properties = {key: value for key, value in schema.items() if key not in _RESERVED}
        logical = schema.get("logicalType")
        if kind in PRIMITIVES:
            return Node(
                kind,
                logical=logical if isinstance(logical, str) else None,
                properties=properties,
            )
        if kind in ("array", "map"):
            inner = schema.get("items" if kind == "array" else "values")
            items = self._type(
                inner, namespace, f"{path}{{}}" if kind == "map" else f"{path}[]", depth + 1
            )
            return Node(kind, items=items, properties=properties)
        if kind not in _NAMED:
            return self._reference(kind, namespace, path)
        return self._named(schema, kind, namespace, path, depth, properties)

    def _named(
        self,
        schema: dict[str, Json],
        kind: str,
        namespace: str,
        path: str,
        depth: int,
        properties: dict[str, Json],
    ) -> Node:
        given = schema.get("name")
        if not isinstance(given, str) or not given:
            msg = f"{path or 'schema'}: a {kind} needs a name, was {given!r}"
            raise SchemaError(msg)
        space, _, short = given.rpartition(".")
        own = schema.get("namespace", namespace)
        if not isinstance(own, str):
            msg = f"{path or 'schema'}: expected a namespace, was {own!r}"
            raise SchemaError(msg)
        space = space if "." in given else own
        for part in [*(space.split(".") if space else []), short]:
            if not _NAME.match(part):
                msg = f"{path or 'schema'}: {given!r} is not a name of letters, digits and _"
                raise SchemaError(msg)
        full = f"{space}.{short}" if space else short
        if full in self._names:
            msg = f"{path or 'schema'}: {full!r} is defined twice"
            raise SchemaError(msg)
        if short in PRIMITIVES and not space:
            msg = f"{path or 'schema'}: {short!r} is the name of a primitive type"
            raise SchemaError(msg)
        logical = schema.get("logicalType")
        node = Node(
            "record" if kind == "error" else kind,
            name=full,
            aliases=tuple(
                alias if "." in alias or not space else f"{space}.{alias}"
                for alias in _texts(schema.get("aliases", []), f"{path}: aliases")
            ),
            doc=str(schema.get("doc", "")),
            logical=logical if isinstance(logical, str) else None,
            properties=properties,
        )
        self._names[full] = node
        where = path or short
        if kind == "fixed":
            size = schema.get("size")
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                msg = f"{where}: a fixed needs a size of 0 or more, was {size!r}"
                raise SchemaError(msg)
            node.size = size
        elif kind == "enum":
            self._enum(node, schema, where)
        else:
            node.fields = tuple(self._fields(schema, space, where, depth))
        return node

    def _enum(self, node: Node, schema: dict[str, Json], path: str) -> None:
        symbols = _texts(schema.get("symbols"), f"{path}: symbols")
        if len(set(symbols)) != len(symbols):
            msg = f"{path}: the symbols of an enum must differ, was {symbols!r}"
            raise SchemaError(msg)
        for symbol in symbols:
            if not _NAME.match(symbol):
                msg = f"{path}: {symbol!r} is not a symbol"
                raise SchemaError(msg)
        default = schema.get("default")
        if default is not None and default not in symbols:
            msg = f"{path}: the default {default!r} is not one of the symbols"
            raise SchemaError(msg)
        node.symbols = tuple(symbols)
        node.symbol_default = default if isinstance(default, str) else None

    def _fields(
        self, schema: dict[str, Json], space: str, path: str, depth: int
    ) -> Iterator[FieldNode]:
        fields = schema.get("fields")
        if not isinstance(fields, list):
            msg = f"{path}: a record needs a list of fields, was {fields!r}"
            raise SchemaError(msg)
        seen: set[str] = set()
        for item in fields:
            name = item.get("name") if isinstance(item, dict) else None
            if not isinstance(item, dict) or not isinstance(name, str) or not _NAME.match(name):
                msg = f"{path}: a field needs a name, was {item!r}"
                raise SchemaError(msg)
            if name in seen:
                msg = f"{path}.{name}: defined twice"
                raise SchemaError(msg)
            seen.add(name)
            if "type" not in item:
                msg = f"{path}.{name}: a field needs a type"
                raise SchemaError(msg)
            field_node = FieldNode(
                name,
                self._type(item["type"], space, f"{path}.{name}", depth + 1),
                item.get("default", NO_DEFAULT) if "default" in item else NO_DEFAULT,
                tuple(_texts(item.get("aliases", []), f"{path}.{name}: aliases")),
                str(item.get("doc", "")),
                {key: value for key, value in item.items() if key not in _RESERVED},
            )
            if "default" in item:
                self._pending.append((field_node, f"{path}.{name}"))
            yield field_node


def _texts(value: Json, path: str) -> list[str]:
    if not isinstance(value, list):
        msg = f"{path}: expected a list of names, was {value!r}"
        raise SchemaError(msg)
    texts = [item for item in value if isinstance(item, str)]
    if len(texts) != len(value):
        msg = f"{path}: expected a list of names, was {value!r}"
        raise SchemaError(msg)
    return texts


def _default_problem(node: Node, default: Json | _NoDefault, depth: int) -> str | None:
    if depth > 64:
        return "it is nested too deeply"
    kind = node.kind
    if kind == "union":
        # Avro 1.11 wants the first branch; 1.12 and every registry accept any. The reader's
        # decoder takes the first branch that the default fits.
        if any(_default_problem(b, default, depth + 1) is None for b in node.branches):
            return None
        return f"no branch of {node.label()} takes it"
    if kind == "record":
        return _record_default_problem(node, default, depth)
    if kind in ("array", "map"):
        values: Json = default  # type: ignore[assignment]
        if kind == "map" and isinstance(values, dict):
            values = list(values.values())
        if not isinstance(values, list):
            return f"{kind} expected"
        problems = (_default_problem(node.item, value, depth + 1) for value in values)
        return next((problem for problem in problems if problem), None)
    if kind == "enum":
        return None if default in node.symbols else f"not a symbol of {node.name}"
    if kind in ("bytes", "fixed"):
        if not isinstance(default, str) or any(ord(char) > 255 for char in default):
            return "a string of characters up to U+00FF expected"
        return (
            None if kind == "bytes" or len(default) == node.size else f"{node.size} bytes expected"
        )
    return _primitive_default_problem(kind, default)


def _record_default_problem(node: Node, default: object, depth: int) -> str | None:
    if not isinstance(default, dict):
        return "an object expected"
    for item in node.fields:
        if item.name in default:
            problem = _default_problem(item.type, default[item.name], depth + 1)
            if problem:
                return f"{item.name}: {problem}"
        elif item.default is NO_DEFAULT:
            return f"{item.name}: missing"
    return None


def _primitive_default_problem(kind: str, default: object) -> str | None:
    if kind == "null":
        fits = default is None
    elif kind == "boolean":
        fits = isinstance(default, bool)
    elif kind == "string":
        fits = isinstance(default, str)
    elif isinstance(default, bool):
        fits = False
    elif kind in _INT_RANGE:
        low, high = _INT_RANGE[kind]
        fits = isinstance(default, int) and low <= default <= high
    else:
        fits = isinstance(default, int | float)
    return None if fits else f"{kind} expected"


def canonical_form(node: Node) -> str:
    """Return the Parsing Canonical Form: equal for schemas that decode the same bytes alike."""
    return _canonical(node, set())


def _canonical(node: Node, seen: set[str]) -> str:
    if node.kind == "union":
        return "[" + ",".join(_canonical(branch, seen) for branch in node.branches) + "]"
    if node.kind in ("array", "map"):
        key = "items" if node.kind == "array" else "values"
        return f'{{"type":"{node.kind}","{key}":{_canonical(node.item, seen)}}}'
    if not node.name:
        return json.dumps(node.kind)
    if node.name in seen:
        return json.dumps(node.name)
    seen.add(node.name)
    head = f'{{"name":{json.dumps(node.name)},"type":"{node.kind}"'
    if node.kind == "fixed":
        return f'{head},"size":{node.size}}}'
    if node.kind == "enum":
        return f'{head},"symbols":{json.dumps(list(node.symbols), separators=(",", ":"))}}}'
    fields = ",".join(
        f'{{"name":{json.dumps(item.name)},"type":{_canonical(item.type, seen)}}}'
        for item in node.fields
    )
    return f'{head},"fields":[{fields}]}}'


_EMPTY64: Final = 0xC15D213AA4D7A795


def _fingerprint_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        value = index
        for _ in range(8):
            value = (value >> 1) ^ (_EMPTY64 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE64: Final = _fingerprint_table()


def fingerprint64(node: Node) -> int:
    """Return the CRC-64-AVRO fingerprint of the canonical form, unsigned."""
    value = _EMPTY64
    for byte in canonical_form(node).encode():
        value = (value >> 8) ^ _TABLE64[(value ^ byte) & 0xFF]
    return value
