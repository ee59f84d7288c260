"""Which schemas can read what others wrote: the rules of Avro 1.11, every problem with its path.

==================== ======================================================================
mode                 the new schema must
==================== ======================================================================
BACKWARD             read what the latest registered one writes (upgrade consumers first)
FORWARD              write what the latest registered one can read (upgrade producers first)
FULL                 both
``*_TRANSITIVE``     the same against every registered version
NONE                 nothing
==================== ======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from schemas.model import NO_DEFAULT, FieldNode, Node

__all__ = [
    "Mode",
    "Problem",
    "check_compatibility",
    "names_match",
    "promotes",
    "reader_problems",
    "writer_field_of",
]

_PROMOTIONS: Final = frozenset(
    {
        ("int", "long"),
        ("int", "float"),
        ("int", "double"),
        ("long", "float"),
        ("long", "double"),
        ("float", "double"),
        ("string", "bytes"),
        ("bytes", "string"),
    }
)


class Mode(StrEnum):
    """What a new version of a schema promises to the versions before it."""

    NONE = "NONE"
    BACKWARD = "BACKWARD"
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why `reader` cannot read what `writer` writes.

    `path` starts at the outermost type: ``CardTransaction.amount_minor``. `version` is the
    registered version on the other side, None when there was none to name.
    """

    path: str
    text: str
    direction: Literal["backward", "forward"] = "backward"
    version: int | None = None

    def __str__(self) -> str:
        against = "" if self.version is None else f" (version {self.version}, {self.direction})"
        return f"{self.path}: {self.text}{against}"


def promotes(writer: str, reader: str) -> bool:
    """Return whether a primitive written as `writer` may be read as `reader`."""
    return writer == reader or (writer, reader) in _PROMOTIONS


def names_match(writer: Node, reader: Node) -> bool:
    """Return whether named types match: the same plain name, or a reader's alias."""
    return (
        writer.short_name == reader.short_name
        or writer.name in reader.aliases
        or writer.short_name in reader.aliases
    )


def writer_field_of(reader_field: FieldNode, writer: Node) -> FieldNode | None:
    """Return the writer's field that fills a reader's field: by name first, then by alias."""
    by_name = {item.name: item for item in writer.fields}
    for name in (reader_field.name, *reader_field.aliases):
        if name in by_name:
            return by_name[name]
    return None


def reader_problems(reader: Node, writer: Node) -> list[Problem]:
    """Return every reason why `reader` cannot read all that `writer` may write; empty when it can.

    An enum symbol without a place and a union branch without a place count, although a record that
    does not use them can be read: the promise is about every record.
    """
    found: list[Problem] = []
    _compare(reader, writer, reader.short_name or reader.kind, found, set())
    return found


def _compare(
    reader: Node, writer: Node, path: str, found: list[Problem], seen: set[tuple[int, int]]
) -> None:
    pair = (id(reader), id(writer))
    if pair in seen:
        return
    if reader.name or writer.name:
        seen = seen | {pair}
    if writer.kind == "union":
        for index, branch in enumerate(writer.branches):
            _compare(reader, branch, f"{path}[{index}]", found, seen)
        return
    if reader.kind == "union":
        _compare_with_union(reader, writer, path, found, seen)
        return
    if reader.kind != writer.kind:
        if not promotes(writer.kind, reader.kind):
            found.append(Problem(path, f"{writer.label()} cannot be read as {reader.label()}"))
        return
    if reader.name and not names_match(writer, reader):
        text = f"{writer.label()} is neither the name nor an alias of {reader.label()}"
        found.append(Problem(path, text))
        return
    if reader.kind in ("array", "map"):
        suffix = "[]" if reader.kind == "array" else "{}"
        _compare(reader.item, writer.item, path + suffix, found, seen)
    elif reader.kind == "fixed" and reader.size != writer.size:
        found.append(Problem(path, f"fixed of {writer.size} bytes was {reader.size} in the reader"))
    elif reader.kind == "enum" and reader.symbol_default is None:
        missing = [symbol for symbol in writer.symbols if symbol not in reader.symbols]
        if missing:
            text = f"symbols {', '.join(missing)} are not in the reader, which has no default"
            found.append(Problem(path, text))
    elif reader.kind == "record":
        _compare_fields(reader, writer, path, found, seen)


def _compare_with_union(
    reader: Node, writer: Node, path: str, found: list[Problem], seen: set[tuple[int, int]]
) -> None:
    # A named branch that matches by name is the one a reader takes; its own problems are then
    # more useful than "no branch fits".
    closest: list[Problem] | None = None
    for branch in reader.branches:
        trial: list[Problem] = []
        _compare(branch, writer, path, trial, seen)
        if not trial:
            return
        if branch.kind == writer.kind and branch.name and names_match(writer, branch):
            closest = trial
    if closest is None:
        closest = [Problem(path, f"{writer.label()} fits no branch of {reader.label()}")]
    found.extend(closest)


def _compare_fields(
    reader: Node, writer: Node, path: str, found: list[Problem], seen: set[tuple[int, int]]
) -> None:
    for field in reader.fields:
        source = writer_field_of(field, writer)
        where = f"{path}.{field.name}"
        if source is not None:
            _compare(field.type, source.type, where, found, seen)
        elif field.default is NO_DEFAULT:
            found.append(
                Problem(where, "the writer does not have it and the reader has no default")
            )


def check_compatibility(
    schema: Node, earlier: Sequence[tuple[int, Node]], mode: Mode
) -> list[Problem]:
    """Return what breaks the promise of `mode` between a new schema and its earlier versions.

    Args:
        schema: the new schema.
        earlier: (version, schema) of the registered ones, oldest first; none means no problem.
        mode: the promise.
    """
    versions = earlier if mode.endswith("_TRANSITIVE") else earlier[-1:]
    kind = mode.removesuffix("_TRANSITIVE")
    found: list[Problem] = []
    for version, other in versions:
        if kind in ("BACKWARD", "FULL"):
            found += [
                Problem(item.path, item.text, "backward", version)
                for item in reader_problems(schema, other)
            ]
        if kind in ("FORWARD", "FULL"):
            found += [
                Problem(item.path, item.text, "forward", version)
                for item in reader_problems(other, schema)
            ]
    return found
