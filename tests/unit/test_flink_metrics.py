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
        self.groups: dict[str, Group] = {}

    def add_group(self, name: str, extra: str | None = None) -> Group:
        return self if extra is None else self.groups.setdefault(extra, Group())

    def bounds(self, name: str) -> dict[str, Counter]:
        return {bound: group.counters[name] for bound, group in self.groups.items()}

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
        found.flush()
        assert group.counters["batch_size"].value == value


def test_counters_add_up_and_exist_from_the_first_mention() -> None:
    found, group = metrics()
    found.count("dead_letters", 0)
    found.flush()
    assert group.counters["dead_letters"].value == 0
    found.count("dead_letters", 2)
    found.count("dead_letters")
    assert group.counters["dead_letters"].value == 0, "nothing is called before a flush"
    found.flush()
    found.flush()
    assert group.counters["dead_letters"].value == 3


def test_a_bucket_counts_all_that_is_at_most_its_bound() -> None:
    found, group = metrics()
    found.observe_ms("stage_ms", 20, 3)
    found.observe_ms("stage_ms", 20.1)
    found.observe_ms("stage_ms", 1e9)
    found.flush()
    found.observe_ms("stage_ms", 0)
    found.flush()
    assert {bound: counter.value for bound, counter in group.bounds("stage_ms_bucket").items()} == {
        **dict.fromkeys(("1", "2", "5", "10"), 1),
        "20": 4,
        **dict.fromkeys(("50", "100", "200", "500", "1000", "2000", "5000", "10000", "60000"), 5),
        "+Inf": 6,
    }
