"""Find every mistake in a declaration before anything runs on it."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from jobs.windows.durations import DAY_MS, duration_ms

if TYPE_CHECKING:
    from jobs.windows.spec import Aggregation, Entity, FeatureSet, Field, Filter

__all__ = ["OPERATIONS", "mistakes_in"]

# Longer windows would keep more than two 90-day spans of every event in memory.
MAX_WINDOW_MS: Final = 90 * DAY_MS
MIN_WINDOW_MS: Final = 1_000
# A batch carries the validity of all fields of an entity in one 32-bit word.
MAX_FIELDS: Final = 24

# operation: (kind of field it takes, takes a filter, takes a delay, may be tiled)
OPERATIONS: Final[dict[str, tuple[str, bool, bool, bool]]] = {
    "count": ("any or none", True, True, True),
    "sum": ("integer", True, True, True),
    "mean": ("integer", True, True, True),
    "min": ("integer", False, True, False),
    "max": ("integer", False, True, False),
    "std": ("integer", False, True, False),
    "zscore": ("integer", False, False, False),
    "distinct": ("text", False, True, False),
    "ratio": ("none", True, True, True),
    "last": ("integer", False, True, False),
    "seconds_since_last": ("none", False, False, False),
    "seconds_since_first": ("none", False, False, False),
    "change_per_second": ("integer", False, False, False),
    "decayed_count": ("none", False, True, False),
    "decayed_sum": ("integer", False, True, False),
    "first_seen": ("text or none", False, False, False),
    "distance": ("none", False, False, False),
    "speed": ("none", False, False, False),
}
"""What each operation accepts."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_COMPARISONS: Final = ("==", "!=", "<", "<=", ">", ">=")


def mistakes_in(declared: FeatureSet) -> list[str]:
    """Return every mistake of a declaration, in the order in which it is read."""
    mistakes: list[str] = []
    known = {item.name: item for item in declared.fields}
    filters = {item.name: item for item in declared.filters}
    _named("feature set", [declared.name], mistakes)
    _named("field", [item.name for item in declared.fields], mistakes)
    _named("filter", [item.name for item in declared.filters], mistakes)
    _named("entity", [item.name for item in declared.entities], mistakes)
    if len(declared.fields) > MAX_FIELDS:
        mistakes.append(f"at most {MAX_FIELDS} fields fit, was {len(declared.fields)}")
    if not declared.entities:
        mistakes.append("at least one entity is needed")
    _check_duration("allowed_lateness", declared.allowed_lateness, mistakes)
    for item in declared.filters:
        _check_filter(item, known, mistakes)
    for event_feature in declared.event:
        if event_feature.operation != "value":
            continue
        _check_field(f"event feature {event_feature.name!r}", event_feature.field, known, mistakes)
    for entity in declared.entities:
        _check_entity(entity, known, filters, mistakes)
    return mistakes


def _named(what: str, names: list[str], mistakes: list[str]) -> None:
    for name in names:
        if _NAME.fullmatch(name) is None:
            mistakes.append(f"{what} {name!r}: expected lower-case letters, digits and _")
        if names.count(name) > 1 and f"{what} {name!r} is declared twice" not in mistakes:
            mistakes.append(f"{what} {name!r} is declared twice")


def _check_duration(where: str, text: str, mistakes: list[str]) -> int:
    try:
        return duration_ms(text)
    except ValueError as e:
        mistakes.append(f"{where}: {e}")
        return 0


def _check_field(
    where: str, name: str | None, known: dict[str, Field], mistakes: list[str]
) -> Field | None:
    if name is None or name not in known:
        declared = ", ".join(known) or "none"
        mistakes.append(f"{where}: unknown field {name!r}; declared are {declared}")
        return None
    return known[name]


def _check_filter(item: Filter, known: dict[str, Field], mistakes: list[str]) -> None:
    if item.field is None:
        return
    field = _check_field(f"filter {item.name!r}", item.field, known, mistakes)
    if item.operator not in _COMPARISONS:
        expected = " ".join(_COMPARISONS)
        mistakes.append(f"filter {item.name!r}: expected one of {expected}, was {item.operator!r}")
    if field is None:
        return
    if field.kind == "text":
        if not isinstance(item.operand, str) or item.operator not in ("==", "!="):
            mistakes.append(f"filter {item.name!r}: text compares with == or != to a string")
    elif isinstance(item.operand, str) or field.kind != "integer":
        mistakes.append(f"filter {item.name!r}: {field.kind} {field.name!r} needs a number")


def _check_entity(
    entity: Entity, known: dict[str, Field], filters: dict[str, Filter], mistakes: list[str]
) -> None:
    where = f"entity {entity.name!r}"
    if not entity.features:
        mistakes.append(f"{where}: at least one feature is needed")
    if not entity.key:
        mistakes.append(f"{where}: the key's source field is needed")
    if entity.hot_keys is not None:
        _check_duration(f"{where}: tile", entity.hot_keys.tile, mistakes)
        if entity.hot_keys.events < 64:
            mistakes.append(
                f"{where}: a key is hot from 64 events at least, was {entity.hot_keys.events}"
            )
    for aggregation in entity.features:
        _check_aggregation(where, entity, aggregation, known, filters, mistakes)


def _check_aggregation(
    entity_text: str,
    entity: Entity,
    item: Aggregation,
    known: dict[str, Field],
    filters: dict[str, Filter],
    mistakes: list[str],
) -> None:
    where = f"{entity_text}: {item.operation}" + (f" of {item.field!r}" if item.field else "")
    if item.operation not in OPERATIONS:
        mistakes.append(f"{where}: expected one of {', '.join(OPERATIONS)}")
        return
    field_kind, may_filter, may_delay, may_tile = OPERATIONS[item.operation]
    if item.field is not None or field_kind in ("integer", "text"):
        field = _check_field(where, item.field, known, mistakes)
        if field is not None and field_kind not in ("any or none", "none"):
            wanted = field_kind.removesuffix(" or none")
            if field.kind != wanted:
                mistakes.append(f"{where}: expected a field of kind {wanted}, was {field.kind}")
        if field_kind == "none":
            mistakes.append(f"{where}: takes no field")
    if item.filter is not None:
        if not may_filter:
            mistakes.append(f"{where}: takes no filter")
        elif item.filter not in filters:
            declared = ", ".join(filters) or "none"
            mistakes.append(f"{where}: unknown filter {item.filter!r}; declared are {declared}")
    elif item.operation == "ratio":
        mistakes.append(f"{where}: a filter is needed")
    if item.operation in ("distance", "speed"):
        coordinates = [f.name for f in known.values() if f.kind == "coordinate"]
        if sorted(coordinates) != ["latitude", "longitude"]:
            mistakes.append(f"{where}: needs coordinates named latitude and longitude")
    if item.delay is not None:
        if not may_delay:
            mistakes.append(f"{where}: takes no delay")
        _check_duration(f"{where}: delay", item.delay, mistakes)
    if item.half_life is not None:
        _check_duration(f"{where}: half life", item.half_life, mistakes)
    elif item.operation.startswith("decayed"):
        mistakes.append(f"{where}: a half life is needed")
    if item.tiles and (not may_tile or entity.hot_keys is None):
        mistakes.append(f"{where}: tiles need hot_keys on the entity and count, sum, mean or ratio")
    if item.tiles and item.filter in filters and filters[item.filter].field is None:
        mistakes.append(f"{where}: tiles forget event ids, so labels cannot reach them")
    if math.isinf(item.default):
        mistakes.append(f"{where}: default must be finite or NaN, was {item.default!r}")
    if not item.windows:
        mistakes.append(f"{where}: at least one window is needed")
    for window in item.windows:
        length = _check_duration(f"{where}: window", window, mistakes)
        if length and not MIN_WINDOW_MS <= length <= MAX_WINDOW_MS:
            mistakes.append(f"{where}: windows are from 1s to 90d, was {window!r}")
