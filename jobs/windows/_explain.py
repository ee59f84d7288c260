"""Say in one English sentence what each feature of a set means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jobs.windows.spec import FeatureSet, WindowFeature

__all__ = ["meaning"]

_EVENT: Final = {
    "value": "{field} of the event; null is 0",
    "weekend": "1 on Saturday and Sunday (UTC), else 0",
    "night": "1 from 00:00 to 06:59:59.999 (UTC), else 0",
}
_WINDOW: Final = {
    "count": "number of events{of_field}{filter}",
    "sum": "sum of {field}{filter}",
    "mean": "mean of {field}{filter}, nulls left out",
    "min": "smallest {field}",
    "max": "largest {field}",
    "std": "sample standard deviation of {field}",
    "zscore": "{field} of this event, less its mean, over its standard deviation",
    "distinct": "number of different values of {field}",
    "ratio": "share of events{filter} among all events",
    "last": "{field} of the newest event before this one that has it",
    "seconds_since_last": "seconds since the previous event",
    "seconds_since_first": "seconds since the first event",
    "change_per_second": "change of {field} since its first value, per second",
    "decayed_count": "events weighted by 2^(-age / {half_life})",
    "decayed_sum": "sum of {field} weighted by 2^(-age / {half_life})",
    "first_seen": "1 when this {what} did not occur before, else 0",
    "distance": "great-circle km from the previous event with coordinates",
    "speed": "km/h implied by the distance from the previous event with coordinates",
}


def meaning(declared: FeatureSet) -> list[dict[str, str]]:
    """Return one row per feature in model order: name, entity, operation, window, meaning."""
    rows = [
        {
            "name": feature.name,
            "entity": "event",
            "operation": feature.operation,
            "window": "",
            "default": "0",
            "meaning": _EVENT[feature.operation].format(field=feature.field),
        }
        for feature in declared.event
    ]
    for entity in declared.entities:
        rows += [_row(feature, entity.key) for feature in declared.columns_of(entity.name)]
    return rows


def _row(feature: WindowFeature, key: str) -> dict[str, str]:
    item = feature.aggregation
    position = item.windows[_window_index(feature)]
    start = f"t - {item.delay} - {position}" if item.delay else f"t - {position}"
    end = f"t - {item.delay}" if item.delay else "t"
    sentence = _WINDOW[item.operation].format(
        field=item.field,
        of_field=f" with a {item.field}" if item.field else "",
        filter=f" passing {item.filter!r}" if item.filter else "",
        half_life=item.half_life,
        what=item.field or feature.entity,
    )
    tiled = "; hot keys: old end rounded to a tile" if item.tiles else ""
    return {
        "name": feature.name,
        "entity": feature.entity,
        "operation": item.operation,
        "window": f"({start}, {end}]",
        "default": f"{item.default:g}",
        "meaning": f"{sentence}, over the events of the same {key}{tiled}",
    }


def _window_index(feature: WindowFeature) -> int:
    from jobs.windows.durations import duration_ms

    lengths = [duration_ms(window) for window in feature.aggregation.windows]
    return lengths.index(feature.window_ms)
