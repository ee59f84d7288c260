"""Another engine's golden answers, for the window kinds that an event-driven store can give.

Tumbling and hopping windows `[start, end)` are asked by a probe at the last millisecond of the
window: an event without a value, which counts of a field leave out. Session windows we do not have.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.windows.batch import EventBatch
from jobs.windows.durations import DAY_MS, HOUR_MS
from jobs.windows.spec import Entity, FeatureSet, count, maximum, minimum, number
from jobs.windows.store import ShardStore
from schemas.columns import NumberColumn, StringColumn

KINDS = FeatureSet(
    name="golden",
    fields=(number("value"),),
    entities=(
        Entity(
            "group",
            "group",
            (
                count(("10s", "1h", "30d"), field="value"),
                minimum("value", ("10s",)),
                maximum("value", ("10s",)),
            ),
        ),
    ),
    allowed_lateness="10d",
)


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def milliseconds(text: str) -> int:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


def asked(
    events: Iterable[tuple[str, int, int]], probes: list[tuple[str, int]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the features of each probe after all events are in."""
    rows: list[tuple[str, int, int | None]] = [*events, *((g, t, None) for g, t in probes)]
    batch = EventBatch(
        np.zeros(len(rows), np.uint8),
        StringColumn.from_texts([group for group, _, _ in rows]),
        np.array([time for _, time, _ in rows], np.int64),
        StringColumn.from_texts([str(i) for i in range(len(rows))]),
        {
            "value": NumberColumn(
                np.array([value or 0 for _, _, value in rows], np.int64),
                np.array([value is not None for _, _, value in rows], np.bool_),
            )
        },
    )
    return ShardStore(KINDS, "group").process(batch).features[-len(probes) :]


@pytest.fixture
def folder(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("arroyo_windows")


def test_hopping_count_min_and_max_equal_the_golden_answers(folder: Path) -> None:
    golden = lines(folder / "golden_sliding_window_end.jsonl.gz")
    events = [
        ("all", milliseconds(row["timestamp"]), row["counter"])
        for row in lines(folder / "input_impulse.jsonl.gz")
    ]
    probes = [("all", milliseconds(row["end"]) - 1) for row in golden]
    got = asked(events, probes)
    names = KINDS.names_of("group")
    for column, name in (("count", "count_10s"), ("min", "min_10s"), ("max", "max_10s")):
        position = names.index(f"group_value_{name}")
        assert got[:, position].tolist() == [row[column] for row in golden]


def test_tumbling_hourly_counts_per_group_equal_the_golden_answers(folder: Path) -> None:
    golden = lines(folder / "golden_hourly_by_event_type.jsonl.gz")
    events = [
        (row["event_type"], milliseconds(row["timestamp"]), 1)
        for row in lines(folder / "input_cars.jsonl.gz")
    ]
    probes = [(row["event_type"], milliseconds(row["hour"]) + HOUR_MS - 1) for row in golden]
    position = KINDS.names_of("group").index("group_value_count_1h")
    assert asked(events, probes)[:, position].tolist() == [row["count"] for row in golden]


def test_tumbling_hourly_counts_of_all_groups_equal_the_golden_answers(folder: Path) -> None:
    golden = lines(folder / "golden_tight_watermark.jsonl.gz")
    events = [
        ("all", milliseconds(row["timestamp"]), 1) for row in lines(folder / "input_cars.jsonl.gz")
    ]
    # The time of such a row is the end of its window.
    probes = [("all", milliseconds(row["timestamp"]) - 1) for row in golden]
    position = KINDS.names_of("group").index("group_value_count_1h")
    assert asked(events, probes)[:, position].tolist() == [row["count"] for row in golden]


def test_a_window_of_thirty_days_equals_the_golden_answer(folder: Path) -> None:
    golden = lines(folder / "golden_month_loose_watermark.jsonl.gz")
    events = [
        ("all", milliseconds(row["timestamp"]), 1) for row in lines(folder / "input_cars.jsonl.gz")
    ]
    probes = [("all", milliseconds(row["month"]) + 30 * DAY_MS - 1) for row in golden]
    position = KINDS.names_of("group").index("group_value_count_30d")
    assert asked(events, probes)[:, position].tolist() == [row["count"] for row in golden]
