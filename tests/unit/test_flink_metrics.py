"""What the stages' metrics are in Flink, as far as it can be seen without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jobs.runtime.functions import FlinkMetrics


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        self.value += by


class Group:
    """A metric group that knows counters only: Python gauges end TaskManagers."""

    def __init__(self) -> None:
        self.counters: dict[str, Counter] = {}

    def add_group(self, name: str, extra: str | None = None) -> Group:
        return self

    def counter(self, name: str) -> Counter:
        return self.counters.setdefault(name, Counter())


def metrics() -> tuple[FlinkMetrics, Group]:
    group = Group()
    context: Any = SimpleNamespace(get_metrics_group=lambda: group)
    return FlinkMetrics(context), group


def test_a_gauge_shows_its_last_value_and_calls_no_python_from_flink() -> None:
    found, group = metrics()
    for value in (5, 12, 3, 3, 0):
        found.gauge("batch_size", value)
        assert group.counters["batch_size"].value == value


def test_counters_add_up_and_exist_from_the_first_mention() -> None:
    found, group = metrics()
    found.count("dead_letters", 0)
    assert group.counters["dead_letters"].value == 0
    found.count("dead_letters", 2)
    found.count("dead_letters")
    assert group.counters["dead_letters"].value == 3
