"""Random pairs of writer and reader schemas, records for them, and damage to their bytes."""

from __future__ import annotations

import io
import random
from typing import Any

import fastavro

from schemas.avro import fastavro_schema
from schemas.model import parse_schema

__all__ = ["SchemaPairs", "mutate", "write_body"]

_PRIMITIVES = ["boolean", "int", "long", "float", "double", "string", "bytes"]
_PROMOTED = {
    "int": ["int", "long", "float", "double"],
    "long": ["long", "float", "double"],
    "float": ["float", "double"],
    "string": ["string", "bytes"],
    "bytes": ["bytes", "string"],
}
_DEFAULTS: dict[str, Any] = {
    "boolean": True,
    "int": -7,
    "long": 2**40,
    "float": 1.5,
    "double": -2.25,
    "string": "d\u00e9faut",
    "bytes": "\u00ff\u0001",
}
_TEXTS = ["", "a", "plain ascii text", "\u00e9t\u00e9", "\u65e5\u672c", "\U0001f600", "x" * 70]


class SchemaPairs:
    """Draws from one seeded source; names are unique within an instance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._names = 0

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}"

    def pair(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a writer's and a reader's record schema; mostly, not always, compatible."""
        return self._records("Top", 0)

    def _records(self, name: str, depth: int) -> tuple[dict[str, Any], dict[str, Any]]:
        writer_fields, reader_fields = [], []
        for _ in range(self.random.randint(1, 6 if depth == 0 else 3)):
            field = self._name("f")
            written, read = self._field(depth)
            writer_fields.append({"name": field, "type": written})
            if read is None:
                continue
            item: dict[str, Any] = {"name": field, "type": read}
            if self.random.random() < 0.15:
                item = {"name": self._name("renamed"), "aliases": [field], "type": read}
            reader_fields.append(item)
        for _ in range(self.random.randint(0, 2)):
            reader_fields.append(self._added())
        self.random.shuffle(reader_fields)
        writer = {"type": "record", "name": name, "fields": writer_fields}
        reader: dict[str, Any] = {"type": "record", "name": name, "fields": reader_fields}
        if self.random.random() < 0.1:
            reader |= {"name": name + "New", "aliases": [name]}
        return writer, reader

    def _added(self) -> dict[str, Any]:
        kind = self.random.choice(_PRIMITIVES)
        default = _DEFAULTS[kind]
        roll = self.random.random()
        if roll < 0.3:
            return {"name": self._name("added"), "type": ["null", kind], "default": None}
        if roll < 0.5:
            return {"name": self._name("added"), "type": [kind, "null"], "default": default}
        if roll < 0.6:
            symbols = ["P", "Q"]
            enum = {"type": "enum", "name": self._name("E"), "symbols": symbols}
            return {"name": self._name("added"), "type": enum, "default": "Q"}
        if roll < 0.7:
            inner = {
                "type": "record",
                "name": self._name("R"),
                "fields": [
                    {"name": "x", "type": "long", "default": 5},
                    {"name": "y", "type": ["null", "string"], "default": None},
                ],
            }
            return {"name": self._name("added"), "type": inner, "default": {"x": 6}}
        return {"name": self._name("added"), "type": kind, "default": default}

    def _field(self, depth: int) -> tuple[Any, Any]:
        roll = self.random.random()
        if roll < 0.22:
            return self._any(depth), None  # the writer's alone, of any type
        if roll < 0.55:
            return self._primitive()
        if roll < 0.72:
            written, read = self._primitive()
            nullable = ["null", written] if self.random.random() < 0.7 else [written, "null"]
            return nullable, ["null", read] if self.random.random() < 0.9 else read
        if roll < 0.78:
            written, read = self._primitive()
            return written, ["null", read]
        if roll < 0.86:
            return self._enums()
        if roll < 0.9:
            size = self.random.randint(0, 5)
            name = self._name("F")
            fixed = {"type": "fixed", "name": name, "size": size}
            return fixed, dict(fixed)
        if roll < 0.95 and depth < 3:
            written, read = self._records(self._name("R"), depth + 1)
            if self.random.random() < 0.4:
                return ["null", written], ["null", read]
            return written, read
        # A general union of which the reader takes some branches only.
        branches = self.random.sample(_PRIMITIVES, self.random.randint(2, 4))
        return ["null", *branches], ["null", self.random.choice(["double", "long", "string"])]

    def _primitive(self) -> tuple[Any, Any]:
        written = self.random.choice(_PRIMITIVES)
        if written == "long" and self.random.random() < 0.3:
            stamp = {"type": "long", "logicalType": "timestamp-millis"}
            return stamp, stamp
        return written, self.random.choice(_PROMOTED.get(written, [written]))

    def _enums(self) -> tuple[Any, Any]:
        symbols = [f"S{i}" for i in range(self.random.randint(1, 5))]
        kept = self.random.sample(symbols, self.random.randint(1, len(symbols)))
        name = self._name("E")
        written = {"type": "enum", "name": name, "symbols": symbols}
        read: dict[str, Any] = {"type": "enum", "name": name, "symbols": kept}
        if self.random.random() < 0.5:
            read["default"] = kept[-1]
        return written, read

    def _any(self, depth: int) -> Any:
        roll = self.random.random()
        if depth > 3 or roll < 0.4:
            return self.random.choice([*_PRIMITIVES, "null"])
        if roll < 0.55:
            return {"type": "array", "items": self._any(depth + 1)}
        if roll < 0.7:
            return {"type": "map", "values": self._any(depth + 1)}
        if roll < 0.8:
            return ["null", *self.random.sample(_PRIMITIVES, 2)]
        if roll < 0.9:
            name = self._name("R")
            fields = [
                {"name": f"g{i}", "type": self._any(depth + 1)}
                for i in range(self.random.randint(0, 3))
            ]
            if self.random.random() < 0.3:
                fields.append({"name": "next", "type": ["null", name]})
            return {"type": "record", "name": name, "fields": fields}
        return {"type": "enum", "name": self._name("E"), "symbols": ["A", "B"]}

    def value(self, schema: Any, names: dict[str, Any], depth: int = 0) -> Any:
        """Return a random value for fastavro; `names` collects the named types met so far."""
        if isinstance(schema, list):
            branch = self.random.choice(schema) if depth < 6 else schema[0]
            value = self.value(branch, names, depth + 1)
            if branch == "null":
                return None
            label = branch.get("name", branch["type"]) if isinstance(branch, dict) else branch
            return (label, value)
        if isinstance(schema, str):
            if schema in names:
                return self.value(names[schema], names, depth + 1)
            return self._scalar(schema)
        kind = schema["type"]
        if "name" in schema:
            names[schema["name"]] = schema
        if kind == "record":
            return {
                item["name"]: self.value(item["type"], names, depth + 1)
                for item in schema["fields"]
            }
        if kind == "enum":
            return self.random.choice(schema["symbols"])
        if kind == "fixed":
            return self.random.randbytes(schema["size"])
        count = self.random.randint(0, 3)
        if kind == "array":
            return [self.value(schema["items"], names, depth + 1) for _ in range(count)]
        if kind == "map":
            return {f"k{i}": self.value(schema["values"], names, depth + 1) for i in range(count)}
        return self._scalar(kind)

    def _scalar(self, kind: str) -> Any:
        bits = self.random.choice([3, 7, 13, 20, 31])
        if kind == "null":
            return None
        if kind == "boolean":
            return self.random.random() < 0.5
        if kind == "int":
            return self.random.randint(-(2**bits), 2**bits - 1)
        if kind == "long":
            bits = self.random.choice([3, 7, 31, 40, 63])
            return self.random.randint(-(2**bits), 2**bits - 1)
        if kind in ("float", "double"):
            return self.random.choice([0.0, 1.5, -1e10, 3.4e38, float("inf"), 0.1])
        if kind == "string":
            return self.random.choice(_TEXTS)
        if self.random.random() < 0.7:
            return self.random.choice(_TEXTS).encode()
        return self.random.randbytes(self.random.randint(0, 8))


def write_body(schema: Any, record: Any) -> bytes:
    """Return the Avro body of a record, through fastavro."""
    target = io.BytesIO()
    parsed = fastavro_schema(parse_schema(schema))
    fastavro.schemaless_writer(target, parsed, record)
    return target.getvalue()


def mutate(source: random.Random, value: bytes, first: int = 0) -> bytes:
    """Return the value with one to three random changes at or after byte `first`."""
    out = bytearray(value)
    for _ in range(source.randint(1, 3)):
        at = source.randint(min(first, len(out)), len(out))
        kind = source.randrange(6)
        if kind == 0:
            del out[at:]
        elif kind == 1:
            out[at:at] = source.randbytes(source.randint(1, 12))
        elif kind == 2 and at < len(out):
            out[at] = source.randrange(256)
        elif kind == 3 and at < len(out):
            out[at] ^= 1 << source.randrange(8)
        elif kind == 4:
            del out[at : at + source.randint(1, 4)]
        elif at < len(out):
            out[at] = source.choice([0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF])
    return bytes(out)
