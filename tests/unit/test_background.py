"""Threads that serve wait for those that decide: by name, on this machine's own scheduler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, get_native_id

import pytest

from jobs.runtime.background import BACKGROUND, NICENESS, let_background_wait

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="threads have niceness and names on Linux only"
)


@contextmanager
def named_thread(name: str) -> Iterator[int]:
    """Run a thread that the kernel calls `name`; yield its number."""
    begun, done, number = Event(), Event(), []

    def run() -> None:
        number.append(get_native_id())
        Path(f"/proc/self/task/{number[0]}/comm").write_text(name, "utf-8")
        begun.set()
        done.wait()

    thread = Thread(target=run)
    thread.start()
    begun.wait()
    try:
        yield number[0]
    finally:
        done.set()
        thread.join()


def niceness(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def test_uploads_and_compactions_wait_and_nothing_else_does() -> None:
    mine = niceness(get_native_id())
    with (
        named_thread("Flink-RocksDBStateDataTransferer-thread-1") as upload,
        named_thread("rocksdb:low") as compaction,
        named_thread("rocksdb:high") as flush,
        named_thread("terminal windows") as stage,
    ):
        assert let_background_wait() == len(BACKGROUND)
        assert (niceness(upload), niceness(compaction)) == (NICENESS, NICENESS)
        assert (niceness(flush), niceness(stage)) == (mine, mine)
        assert let_background_wait() == len(BACKGROUND)
    assert niceness(get_native_id()) == mine


def test_a_name_that_the_kernel_cut_within_a_letter_is_passed_over() -> None:
    with named_thread("é" * 8), named_thread("rocksdb:low"):
        assert let_background_wait() == 1


def test_without_such_threads_nothing_is_done() -> None:
    assert let_background_wait() == 0
