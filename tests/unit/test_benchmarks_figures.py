"""What the bench makes of measurements: fits, flame graphs, the page; and its load generator."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer

from benchmarks import host
from benchmarks.cpu_profile import lines_of, table
from benchmarks.flames import collapse_jfr, draw
from benchmarks.host import steadiness
from benchmarks.limits import efficiency
from benchmarks.load import percentiles, send_at_rate
from benchmarks.measure import Plan, backlog
from benchmarks.page import write_page
from benchmarks.processes import thread_times
from benchmarks.scaling import check_load, fit_load, predict
from benchmarks.session import lag_growth, pieces
from benchmarks.sustained import MOST_TRIED, find_sustained
from benchmarks.workload import Workload

MACHINE = {
    "processor": "some processor",
    "cores": 2,
    "memory_gb": 24.0,
    "load_average": [1.0, 1.0, 1.0],
    "python": "3.11",
    "versions": {"numpy": "2"},
}


def _result(name: str, rate: float, cpu_us: float, p99: float) -> dict[str, Any]:
    late = {"p50_ms": 5.0, "p99_ms": p99, "p99_9_ms": 2 * p99, "max_ms": 3 * p99, "count": 9}
    run = {"alert_latency": late, "decision_latency": late, "lag_growth": 0.0}
    return {
        "name": name,
        "title": f"the {name}",
        "measured_at": "2026-01-01T00:00:00+00:00",
        "machine": MACHINE,
        "code": "abcdef",
        "load_before": 0.5,
        "first_row_seconds": 9.0,
        "equality": {"values": 108_000},
        "task_managers": 2,
        "drained": {
            "events": 1000,
            "events_per_second": rate,
            "cpu_us_per_event": cpu_us,
            "cores_used": 1.0,
            "resident_mb": 100,
            "others_cores": 0.05,
            "machine_cores_stolen": 0.1,
            "cpu_us_per_event_by_part": {"taskmanager-1": cpu_us, "kafka": 3.0, "harness": 1.0},
        },
        "at_rate": [{"rate": 5_000, **run}],
        "at_80_percent": {"rate": 8_000, **run},
        "state_bytes": 1_000_000,
        "recovery": {"gap_seconds": 3.0, "rate": 1_000},
        "surge": {"recovered_seconds": 1.0, "base_rate": 10, "surge_rate": 100},
    }


def _page(folder: Path, *results: dict[str, Any]) -> str:
    for one in results:
        (folder / f"contestant_{one['name']}.json").write_text(json.dumps(one), encoding="utf-8")
    write_page(folder, folder / "README.md")
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_page_says_which_aims_are_missed_and_where_we_lose(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        _result("riskstream-thread", 20_000.0, 50.0, 90.0),
        _result("java", 30_000.0, 25.0, 30.0),
        _result("pyflink-thread", 500.0, 900.0, 900.0),
    )
    twenty = "40.0 times its events/s, 18.0 times per core used | met |"
    assert f"| 20 times the pyflink-thread | {twenty}" in page
    assert "(108,000 of each, and every alert)" in page
    assert "| the java | 25.0 | 3.0 |  |  |  | 1.0 | 29.0 |" in page
    assert re.search(r"above the Java job in throughput per core \|.*\| \*\*missed\*\* \|", page)
    assert "| p99 under 40 ms at 5,000/s | 90 ms | **missed** |" in page
    assert "- throughput: the java 30,000.0 against our 20,000.0" in page
    assert "- alert p99 at 5,000/s: the java 30.0 against our 90.0" in page
    assert (tmp_path / "throughput.svg").exists()
    assert (tmp_path / "latency.svg").exists()


def test_a_contestant_that_failed_has_no_figures_and_its_reason_is_shown(tmp_path: Path) -> None:
    failed = {"name": "quix", "title": "Quix Streams", "error": "UnequalResultsError: event e1"}
    page = _page(tmp_path, _result("riskstream-thread", 20_000.0, 50.0, 9.0), failed)
    assert "- Quix Streams: UnequalResultsError: event e1" in page
    assert "| Quix Streams |" not in page


def test_nobody_is_ranked_against_who_ran_while_others_took_cores(tmp_path: Path) -> None:
    busy = _result("java", 30_000.0, 25.0, 30.0)
    busy["drained"]["others_cores"] = 0.9
    page = _page(tmp_path, _result("riskstream-thread", 20_000.0, 10.0, 9.0), busy)
    assert "when these ran: the java." in page
    assert re.search(r"above the Java job .*\| not judged: busy machine \|", page)
    assert "| p99 under 40 ms at 5,000/s | 9 ms | met |" in page


def test_nobody_is_ranked_against_a_short_run(tmp_path: Path) -> None:
    short = {**_result("java", 30_000.0, 25.0, 30.0), "short": True}
    page = _page(tmp_path, _result("riskstream-thread", 20_000.0, 10.0, 9.0), short)
    assert "rank no one either: the java." in page
    assert re.search(r"above the Java job .*\| not judged: short run \|", page)


def test_the_page_shows_what_is_sustained_and_each_rate_that_was_tried(tmp_path: Path) -> None:
    ours = _result("riskstream-thread", 100_000.0, 10.0, 120.0)
    run = ours["at_80_percent"]
    ours["sustained"] = 86_000
    ours["tried"] = [
        {**run, "rate": 80_000},
        {**run, "rate": 93_000, "lag_growth": 0.25},
        {**run, "rate": 86_000},
    ]
    ours["at_80_percent"] = {
        **_result("riskstream-thread", 1.0, 1.0, 90.0)["at_80_percent"],
        "rate": 68_800,
    }
    page = _page(tmp_path, ours)
    assert "| the riskstream-thread | 1,000 | **100,000** | 86,000 |" in page
    assert "93,000/s (93%): 5 / 120, grew by 0.25 s/s |" in page
    aim = "p99 under 100 ms at 80 % of maximum: of"
    assert f"| {aim} what it sustains | 90 ms at 68,800/s | met |" in page
    assert f"| {aim} what its backlog drained at | 120 ms at 80,000/s | **missed** |" in page
    assert "| 86,000 sustained; 100,000 of a backlog | met |" in page


@pytest.mark.parametrize(
    ("limit", "expected", "tried"),
    [
        (120_000.0, 100_000.0, [80_000, 100_000]),
        (88_000.0, 86_000.0, [80_000, 100_000, 93_000, 86_000]),
        (81_000.0, 80_000.0, [80_000, 100_000, 93_000, 86_000]),
        (65_000.0, 60_000.0, [80_000, 70_000, 60_000]),
        (1_000.0, None, [80_000, 70_000, 60_000, 50_000, 40_000, 30_000, 20_000]),
    ],
)
def test_the_sustained_rate_is_the_highest_tried_at_which_the_lag_does_not_grow(
    limit: float, expected: float | None, tried: list[int]
) -> None:
    rates: list[int] = []

    def at_rate(rate: float) -> dict[str, float]:
        rates.append(round(rate))
        return {"lag_growth": max(0.0, rate / limit - 1)}

    found = find_sustained(at_rate, 100_000.0)
    assert rates == tried
    assert found == (None if expected is None else pytest.approx(expected))
    assert sum(rates) <= MOST_TRIED * 100_000.0 + 1


def test_pieces_are_in_order_complete_and_shorter_than_the_span() -> None:
    records = Workload(300, customers=20).records
    span_ms = 86_400_000
    found = list(pieces(records, span_ms))
    assert [one for piece in found for one in piece] == records
    assert len(found) == 3
    assert all(piece[-1].event_time_ms - piece[0].event_time_ms < span_ms for piece in found)
    assert list(pieces([], span_ms)) == []


def test_a_lag_grows_when_it_ends_long_and_rises_all_the_way() -> None:
    rising = [(at / 4, 100.0 + 50.0 * at) for at in range(32)]
    assert lag_growth(rising) == pytest.approx(0.2, abs=1e-3)
    assert lag_growth([(at, 1_000.0 - lag) for at, lag in rising[:16]]) == 0.0
    # A batch's own time, however it wanders.
    assert lag_growth([(at / 4, 20.0 + at) for at in range(32)]) == 0.0
    assert lag_growth(rising[:3]) == 0.0


def test_a_backlog_lasts_as_long_for_all_within_its_bounds() -> None:
    plan = Plan((), (), 5_000, 400_000, 15.0, (), 8.0, 0.0, 0.0)
    assert backlog(2_000.0, plan) == 30_000
    assert backlog(100.0, plan) == 5_000
    assert backlog(50_000.0, plan) == 400_000


def test_the_time_of_threads_that_ended_is_in_a_line_of_its_own() -> None:
    before = {(1, 1): ("main", 5_000, 0), (1, 2): ("pool-1", 0, 0)}
    after = {(1, 1): ("main", 25_000, 3_000), (1, 2): ("pool-1", 10_000, 0)}
    after[1, 3] = ("pool-2", 10_000, 0)
    lines = lines_of({"kafka": [1]}, before, after, {"kafka": 100e-6}, 10)
    found = {line.thread: (line.ran_us, line.waited_us) for line in lines}
    assert found == {
        "": (pytest.approx(10.0), 0.0),
        "(ended)": (pytest.approx(6.0), 0.0),
        "main": (pytest.approx(2.0), pytest.approx(0.3)),
        "pool-#": (pytest.approx(2.0), 0.0),
    }
    assert "| **kafka** | | **10.00** | |" in table(lines, "a load")


def test_threads_of_this_process_have_run() -> None:
    found = thread_times([os.getpid()])
    _, ran, _ = found[os.getpid(), os.getpid()]
    assert ran > 0


def test_the_fit_of_load_finds_the_line_and_predicts_each_rate_from_the_others() -> None:
    points = [(rate, 0.1 + 20e-6 * rate) for rate in (500.0, 2_000.0, 5_000.0, 20_000.0)]
    found = fit_load(points)
    assert found["idle_cores"] == pytest.approx(0.1)
    assert found["us_per_event"] == pytest.approx(20.0)
    assert all(abs(one["error"]) < 1e-6 for one in found["left_out"])
    with pytest.raises(ValueError, match="three rates or more, was 2"):
        fit_load(points[:2])


def test_the_cost_of_the_backlog_is_checked_at_80_percent_of_the_maximum() -> None:
    found = check_load({"cpu_us_per_event": 25.0}, {"rate": 20_000, "cores_used": 0.4})
    assert found == {
        "rate": 20_000,
        "predicted_cores": 0.5,
        "measured_cores": 0.4,
        "error": 0.25,
    }


def test_the_error_of_a_rate_is_that_of_a_fit_without_it() -> None:
    points = [(1_000.0, 0.1), (2_000.0, 0.2), (4_000.0, 0.8)]
    assert fit_load(points)["left_out"][2]["error"] == pytest.approx(-0.5)


def test_a_prediction_uses_the_usable_share_of_the_cores() -> None:
    for cores in (2, 16, 256):
        found = predict(cores, 20.0)
        assert found["events_per_second"] * 20e-6 == pytest.approx(0.8 * cores)
        assert found["shards"] == 2 * cores


def test_efficiency_counts_the_profile_cache_for_both_profiles() -> None:
    costs = dict.fromkeys(
        [
            *("kafka_read_us", "decode_us", "customer_windows_us", "terminal_windows_us"),
            *("model_us", "clickhouse_insert_us", "kafka_write_us", "profile_cache_us"),
            "redis_miss_us",
        ],
        1.0,
    )
    assert efficiency(costs, 18.0) == {"sum_us": 9.0, "ours_us": 18.0, "efficiency": 0.5}


def test_a_flame_is_as_wide_as_its_share_and_its_names_are_escaped(tmp_path: Path) -> None:
    stacks = Counter({("main", "List<int>"): 3, ("main", "other"): 1})
    draw(stacks, "a title", tmp_path / "flame.svg")
    svg = (tmp_path / "flame.svg").read_text(encoding="utf-8")
    assert "<title>List&lt;int&gt; (75.0%)</title>" in svg
    assert 'width="899.5"' in svg
    assert "4 samples" in svg


def test_stacks_of_jfr_are_counted_outermost_first() -> None:
    sample = "jdk.ExecutionSample {\n  stackTrace = [\n    A.inner(int) line: 3\n    A.outer()\n"
    text = (sample + "    ...\n  ]\n}\n") * 2
    assert collapse_jfr(text) == {("A.outer", "A.inner"): 2}


def test_every_record_is_stamped_with_the_time_it_was_due() -> None:
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(owner.list_topics(timeout=10).brokers.values()))
    configuration: dict[str, object] = {"bootstrap.servers": f"{broker.host}:{broker.port}"}
    records = Workload(200, customers=50).records
    sent = send_at_rate(configuration, "load", records, 1_000.0)
    assert sent.sent == len(records)
    consumer = Consumer({**configuration, "group.id": "g", "auto.offset.reset": "earliest"})
    consumer.subscribe(["load"])
    try:
        stamps: list[int] = []
        for _ in range(200):
            stamps += [one.timestamp()[1] for one in consumer.consume(500, 0.1)]
            if len(stamps) == len(records):
                break
    finally:
        consumer.close()
    # A millisecond apart, whenever they really left.
    assert sorted(stamp - min(stamps) for stamp in stamps) == pytest.approx(range(200), abs=1)


def test_a_host_that_stumbles_is_told_from_a_calm_one() -> None:
    calm = steadiness([100.0, 99.0, 101.0, 98.0] * 25)
    assert calm == {"best_per_second": 101, "slow_share": 0.0, "slowest_share": 0.97}
    stumbling = steadiness([100.0] * 94 + [40.0] * 5 + [10.0])
    assert stumbling == {"best_per_second": 100, "slow_share": 0.06, "slowest_share": 0.1}


def test_waiting_for_a_calm_host_ends_when_it_is_calm_or_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = [0.2, 0.1, host.CALM, 0.3]
    monkeypatch.setattr(
        host, "host_steadiness", lambda: {"slow_share": shares.pop(0), "slowest_share": 0.1}
    )
    monkeypatch.setattr(host, "_PAUSE_SECONDS", 0.0)
    said: list[str] = []
    host.await_calm(1.0, said.append)
    assert shares == [0.3]
    assert len(said) == 2
    assert "20.0% of the time" in said[0]
    host.await_calm(0.0, said.append)
    assert shares == [0.3]


def test_percentiles_of_nothing_say_only_that_there_was_nothing() -> None:
    assert percentiles([]) == {"count": 0}
    assert percentiles([1.0, 3.0])["max_ms"] == 3.0


def test_the_page_says_who_ran_on_which_machine_and_what_the_harness_takes(tmp_path: Path) -> None:
    ours, other = _result("riskstream-thread", 9_000, 50, 20), _result("java", 5_000, 100, 30)
    assert "Not one machine" not in _page(tmp_path, ours, other)
    other["machine"] = {**MACHINE, "processor": "another"}
    costs = {"costs": {}, "efficiency": {"sum_us": 1.0, "ours_us": 2.0, "efficiency": 0.5}}
    floor = [{"rate": 5_000, "p50_ms": 5.0, "p99_ms": 9.0, "p99_9_ms": 10.0}]
    (tmp_path / "limits.json").write_text(json.dumps({**costs, "floor": floor}), encoding="utf-8")
    page = _page(tmp_path, ours, other)
    assert "on another the java" in page
    assert "| the harness alone | - | - | 5 / 9 / 10 |" in page
