"""Defaults of Avro fields as the values that decoding gives."""

from __future__ import annotations

from typing import Any

from schemas._program import default_fits
from schemas.model import Json, Node

__all__ = ["default_value"]


def default_value(node: Node, default: object) -> Any:
    """Return a JSON default as the value that decoding gives: bytes as bytes, records complete."""
    if node.kind == "union":
        fitting = (branch for branch in node.branches if default_fits(branch, default))
        node = next(fitting, node.branches[0])
    if node.kind in ("bytes", "fixed"):
        return str(default).encode("latin-1")
    if node.kind in ("float", "double") and isinstance(default, int):
        return float(default)
    if node.kind == "array" and isinstance(default, list):
        return [default_value(node.item, value) for value in default]
    if node.kind == "map" and isinstance(default, dict):
        return {key: default_value(node.item, value) for key, value in default.items()}
    if node.kind == "record" and isinstance(default, dict):
        return {
            field.name: default_value(field.type, default.get(field.name, field.default))
            for field in node.fields
        }
    value: Json = default  # type: ignore[assignment]
    return value
