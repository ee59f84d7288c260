"""Keep personal data out of sight, by annotation in the schema.

A field with the property ``riskstream.sensitivity`` is one of

=========  =======================================================================================
mask       no one downstream needs it: listings show ``***``
tokenise   its identity matters, its value does not: a keyed token takes its place, equal for equal
           values, so joins and counts still work; without the key it cannot be computed or reversed
=========  =======================================================================================

Tokens are ``tok_`` and 32 hexadecimal digits: BLAKE2b of 128 bits, keyed (RFC 7693). A value that
is a token already stays as it is, so that replays and second passes change nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from schemas.columns import StringColumn
from schemas.errors import ConfigurationError
from schemas.model import Node, SchemaError

__all__ = ["MASK", "Sensitivity", "Tokeniser", "mask_record", "sensitive_fields"]

MASK: Final = "***"
"""What a listing shows for a sensitive value; null stays null."""

Sensitivity: TypeAlias = Literal["mask", "tokenise"]
"""What happens to a field's values."""

_PROPERTY: Final = "riskstream.sensitivity"
_TOKEN: Final = re.compile(rb"tok_[0-9a-f]{32}\Z")
_MIN_KEY_BYTES: Final = 16


def sensitive_fields(schema: Node) -> dict[str, Sensitivity]:
    """Return the annotated fields by dotted name; items of arrays and maps count as their field.

    Raises:
        SchemaError: an annotation is neither ``mask`` nor ``tokenise``.
    """
    found: dict[str, Sensitivity] = {}
    _collect(schema, "", found, ())
    return found


def _collect(
    node: Node, prefix: str, found: dict[str, Sensitivity], open_records: tuple[Node, ...]
) -> None:
    if node.kind == "union":
        for branch in node.branches:
            _collect(branch, prefix, found, open_records)
    elif node.kind in ("array", "map"):
        _collect(node.item, prefix, found, open_records)
    elif node.kind == "record" and node not in open_records:
        for field in node.fields:
            name = f"{prefix}.{field.name}" if prefix else field.name
            value = field.properties.get(_PROPERTY, field.type.properties.get(_PROPERTY))
            if value == "mask" or value == "tokenise":
                found[name] = "mask" if value == "mask" else "tokenise"
            elif value is not None:
                msg = f"{node.name}.{field.name}: {_PROPERTY} is mask or tokenise, was {value!r}"
                raise SchemaError(msg)
            _collect(field.type, name, found, (*open_records, node))


def mask_record(record: Mapping[str, Any], fields: Mapping[str, Sensitivity]) -> dict[str, Any]:
    """Return a copy for a listing or a log: sensitive values are `MASK`, except tokens and null.

    Args:
        record: a decoded record.
        fields: what `sensitive_fields` returned for its schema.
    """
    return {name: _masked(value, name, fields) for name, value in record.items()}


def _masked(value: Any, name: str, fields: Mapping[str, Sensitivity]) -> Any:
    if name in fields:
        if value is None or (fields[name] == "tokenise" and _is_token(value)):
            return value
        return MASK
    if isinstance(value, Mapping):
        # The values of a map share its field's name; those of a record have their own.
        return {
            key: _masked(item, f"{name}.{key}" if _below(f"{name}.{key}", fields) else name, fields)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_masked(item, name, fields) for item in value]
    return value


def _below(name: str, fields: Mapping[str, Sensitivity]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for field in fields)


def _is_token(value: object) -> bool:
    raw = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return isinstance(raw, bytes) and _TOKEN.match(raw) is not None


class Tokeniser:
    """Replaces values by keyed tokens: the same value and key give the same token, anywhere.

    Args:
        key: the secret, at least 16 bytes; whoever has it can test guesses of a value.

    Raises:
        ConfigurationError: the key is too short.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _MIN_KEY_BYTES:
            msg = f"tokenising: the key needs {_MIN_KEY_BYTES} bytes or more, was {len(key)}"
            raise ConfigurationError(msg)
        # BLAKE2b takes keys of up to 64 bytes; hashing first lets any length count in full.
        self._state = hashlib.blake2b(
            key=hashlib.blake2b(key, digest_size=64).digest(), digest_size=16
        )

    def token(self, value: str | bytes) -> str:
        """Return the token of one value; of a token, the token itself."""
        raw = value.encode() if isinstance(value, str) else value
        if _is_token(raw):
            return raw.decode("ascii")
        state = self._state.copy()
        state.update(raw)
        return f"tok_{state.hexdigest()}"

    def column(self, values: StringColumn) -> StringColumn:
        """Return a column with tokens in place of values; null stays null.

        Costs about a microsecond for each value that is not null: distinct values are not cached,
        because a cache of card numbers is what this module is there to avoid.
        """
        return StringColumn.from_texts(
            [
                None if (raw := values.bytes_at(index)) is None else self.token(raw)
                for index in range(len(values))
            ]
        )

    def record(
        self, record: Mapping[str, Any], fields: Mapping[str, Sensitivity]
    ) -> dict[str, Any]:
        """Return a copy, top-level fields tokenised as annotated and masked ones null."""
        out = dict(record)
        for name, kind in fields.items():
            if out.get(name) is not None:
                out[name] = self.token(out[name]) if kind == "tokenise" else None
        return out
