"""What the stages' metrics are in Flink, as far as it can be seen without a cluster."""

from __future__ import annotations

from jobs.runtime.functions import FlinkMetrics
from tests.support.flink_metrics import Group, context_of


def metrics() -> tuple[FlinkMetrics, Group]:
    group = Group()
    return FlinkMetrics(context_of(group)), group


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
