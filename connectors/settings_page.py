"""Write docs/guide/configuration.md from the settings tree itself, so that it cannot go stale.

Example: python -m connectors.settings_page > docs/guide/configuration.md
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from connectors.settings import ENVIRONMENT_PREFIX, Settings

__all__ = ["configuration_page"]

_HEAD = """\
# Configuration

One tree of settings, read once from a file, then the environment, then flags; the last one wins.
`riskstream config` prints the tree in force, secrets masked. Unknown keys and all mistakes are
reported together. This page is generated: `python -m connectors.settings_page`.

| source | example |
|---|---|
| TOML file (`--config FILE`, `RISKSTREAM_CONFIG`) | `[kafka]` `bootstrap_servers = "broker:9092"` |
| environment | `RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS=broker:9092` |
| flag, before the verb | `riskstream --set kafka.bootstrap_servers=broker:9092 ...` |

The environment variable of a key is `RISKSTREAM_` and the key in capitals, with `__` for each dot.
"""


def configuration_page() -> str:
    """Return the page as Markdown: one table per section, in the order of the tree."""
    parts = [_HEAD]
    for path, section in _sections(Settings, ""):
        fields = [
            (name, field)
            for name, field in section.model_fields.items()
            if not _is_section(field.annotation)
        ]
        if fields:
            parts.append(_section_text(path, section, fields))
    return "\n".join(parts)


def _sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, section
    for name, field in section.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from _sections(below, f"{path}{name}.")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _section_text(path: str, section: type[BaseModel], fields: list[tuple[str, FieldInfo]]) -> str:
    title = path.rstrip(".") or "top level"
    variable = ENVIRONMENT_PREFIX + path.upper().replace(".", "__")
    rows = [
        f"| `{path}{name}` | {_type_text(field.annotation)}{_bounds(field)} | {_default(field)} |"
        for name, field in fields
    ]
    return "\n".join(
        [
            f"## {title}",
            "",
            inspect.getdoc(section) or "",
            "",
            f"Environment: `{variable}...`",
            "",
            "| key | value | default |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _type_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_text(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        inner = [item for item in get_args(annotation) if item is not type(None)]
        return " or ".join(_type_text(item) for item in inner)
    if origin is tuple:
        return f"list of {_type_text(get_args(annotation)[0])}s"
    if annotation is SecretStr:
        return "secret text"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, "path" if name == "Path" else name)


def _bounds(field: FieldInfo) -> str:
    texts = [text for item in _metadata(field) for text in _bound(item)]
    return f", {' and '.join(texts)}" if texts else ""


def _metadata(field: FieldInfo) -> list[Any]:
    """Return the constraints of a field, also those of an optional one's inner type."""
    found = list(field.metadata)
    for item in get_args(field.annotation):
        if get_origin(item) is Annotated:
            for extra in get_args(item)[1:]:
                found += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    return found


def _bound(item: Any) -> list[str]:
    if isinstance(item, Interval):
        pairs = (("above", item.gt), ("from", item.ge), ("below", item.lt), ("to", item.le))
        return [f"{word} {value}" for word, value in pairs if value is not None]
    for kind, word, name in (
        (Gt, "above", "gt"),
        (Ge, "from", "ge"),
        (Lt, "below", "lt"),
        (Le, "to", "le"),
    ):
        if isinstance(item, kind):
            return [f"{word} {getattr(item, name)}"]
    return []


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if str(value) else "empty"


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
