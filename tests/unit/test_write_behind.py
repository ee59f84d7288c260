"""Rows are stored beside the task that gathers the next, one write at a time and in order."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.clickhouse import ClickHouseUnavailable
from connectors.row_binary import RowBinaryLayout
from connectors.settings import ClickHouseSettings
from jobs.row_tables import RowTables, table_rows
from jobs.runtime.functions import FlinkMetrics, WriterFunction
from jobs.runtime.write_behind import WriteBehind
from tests.support.flink_metrics import Group, context_of

WAIT = 30.0
SETTLE = bytes(4)
"""What `RowGather` sends in front of a barrier: a count of no rows."""


class SlowStore:
    """A database that stores when it is told to."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.begun = threading.Semaphore(0)
        self.may_store = threading.Semaphore(0)
        self.closed = False

    def open(self, metrics: Any) -> None:
        self.metrics = metrics

    def write(self, rows: bytes) -> None:
        self.begun.release()
        assert self.may_store.acquire(timeout=WAIT)
        self.metrics.count("rows_inserted", len(rows))
        self.stored.append(rows)

    def close(self) -> None:
        self.closed = True


def started() -> tuple[WriterFunction, SlowStore, Group]:
    store, group = SlowStore(), Group()
    function = WriterFunction(store)
    function.open(context_of(group))
    return function, store, group


def give(function: WriterFunction, packet: bytes) -> None:
    assert list(function.process_element(packet, None)) == []


def test_a_task_gathers_on_while_its_rows_are_stored() -> None:
    function, store, group = started()
    give(function, b"\1\0\0\0a")
    assert store.begun.acquire(timeout=WAIT)
    assert store.stored == [], "process_element returned before the rows were stored"
    store.may_store.release()
    give(function, SETTLE)
    assert store.stored == [b"\1\0\0\0a"]
    assert group.counters["rows_inserted"].value == 5


def test_a_barrier_waits_until_all_rows_before_it_are_stored() -> None:
    function, store, _ = started()
    give(function, b"\1\0\0\0a")
    passed = threading.Event()

    def barrier() -> None:
        give(function, SETTLE)
        passed.set()

    thread = threading.Thread(target=barrier)
    thread.start()
    assert store.begun.acquire(timeout=WAIT)
    assert not passed.wait(0.1)
    store.may_store.release()
    assert passed.wait(WAIT)
    thread.join()
    assert store.stored == [b"\1\0\0\0a"]


def test_one_write_at_a_time_in_the_order_of_arrival() -> None:
    function, store, _ = started()
    packets = [bytes([1, 0, 0, 0, number]) for number in range(20)]
    for packet in packets:
        give(function, packet)
    for number in range(20):
        assert store.begun.acquire(timeout=WAIT)
        assert not store.begun.acquire(timeout=0.01), "a second write began beside the first"
        assert store.stored == packets[:number]
        store.may_store.release()
    give(function, SETTLE)
    assert store.stored == packets


def test_rows_that_find_no_room_wait_for_it() -> None:
    store = SlowStore()
    store.open(SimpleNamespace(count=lambda *_: None))
    behind = WriteBehind(store.write, most_bytes=10)
    behind.hand_over(b"12345")
    behind.hand_over(b"12345")
    handed = threading.Event()

    def third() -> None:
        behind.hand_over(b"more than may wait")
        handed.set()

    thread = threading.Thread(target=third)
    thread.start()
    store.may_store.release()
    assert not handed.wait(0.1), "one of two is still waiting"
    store.may_store.release()
    assert handed.wait(WAIT), "rows of any size are taken when nothing else waits"
    thread.join()
    store.may_store.release()
    behind.settle()
    assert store.stored == [b"12345", b"12345", b"more than may wait"]


def test_what_a_write_raises_fails_the_task_and_nothing_is_stored_after_it() -> None:
    stored: list[bytes] = []
    may_fail = threading.Event()

    def broken(rows: bytes) -> None:
        assert may_fail.wait(WAIT)
        if rows == b"second":
            raise ValueError(rows)
        stored.append(rows)

    behind = WriteBehind(broken)
    for rows in (b"first", b"second", b"third"):
        behind.hand_over(rows)
    may_fail.set()
    for _ in range(2):
        with pytest.raises(ValueError, match="second"):
            behind.settle()
    with pytest.raises(ValueError, match="second"):
        behind.hand_over(b"fourth")
    assert stored == [b"first"]


def test_metrics_are_shown_while_the_database_is_away() -> None:
    looks = threading.Semaphore(0)
    away = threading.Event()
    behind = WriteBehind(lambda rows: looks_at(away), looks.release)
    behind.hand_over(b"rows")
    waiting = threading.Thread(target=behind.settle)
    waiting.start()
    assert looks.acquire(timeout=WAIT)
    assert looks.acquire(timeout=WAIT)
    away.set()
    waiting.join(WAIT)
    assert not waiting.is_alive()


def looks_at(event: threading.Event) -> None:
    assert event.wait(WAIT)


def test_no_count_is_lost_between_two_threads() -> None:
    group = Group()
    found = FlinkMetrics(context_of(group))

    def count() -> None:
        for _ in range(20_000):
            found.count("rows_inserted")

    thread = threading.Thread(target=count)
    thread.start()
    while thread.is_alive():
        found.flush()
    found.flush()
    assert group.counters["rows_inserted"].value == 20_000


class Tables(RowTables):
    def tables(self) -> list[tuple[str, RowBinaryLayout]]:
        return [("kept", RowBinaryLayout([("n", "Int64")]))]


def test_a_closed_writer_stops_waiting_for_a_database_that_is_away() -> None:
    tables = Tables(ClickHouseSettings(url="http://127.0.0.1:9", timeout_ms=500))
    group = Group()
    found = FlinkMetrics(context_of(group))
    tables.open(found)
    layout = RowBinaryLayout([("n", "Int64")])
    block = table_rows(0, 1, layout.pack({"n": 7}, 1))[-(12 + 8) :]
    failure: list[BaseException] = []

    def write() -> None:
        try:
            tables.write(bytes([1, 0, 0, 0]) + block)
        except ClickHouseUnavailable as e:
            failure.append(e)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive() and "clickhouse_retries" not in group.counters:
        found.flush()
    assert thread.is_alive(), "a writer waits for as long as ClickHouse is away"
    tables.close()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert "the task ended" in str(failure[0])
