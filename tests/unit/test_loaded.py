"""What is loaded stays out of collections, and what has ended does not stay in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from jobs.runtime.loaded import leave_loaded_alone


class Task:
    """Part of a cycle: only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_alive_is_left_out_of_later_collections() -> None:
    task = Task()
    leave_loaded_alone()
    assert gc.get_freeze_count() > 1_000
    alive = weakref.ref(task)
    del task
    gc.collect()
    assert alive() is not None


def test_a_task_that_ended_is_dropped_when_the_next_opens() -> None:
    task = Task()
    leave_loaded_alone()
    alive = weakref.ref(task)
    del task
    leave_loaded_alone()
    assert alive() is None
