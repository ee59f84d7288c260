"""Store rows beside the task that gathers the next ones, in their order, all before a barrier.

A task that waits for an insert reads nothing, and what it does not read holds up the stage in front
of it as soon as a third of a megabyte of rows waits: for the rest of an insert nobody decides. So
rows are written in a thread of their own. What waits is bounded, and written before a checkpoint
completes: the gathering operator sends a call without rows in front of each barrier.
"""

from __future__ import annotations

from collections import deque
from threading import Condition, Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_BYTES", "WriteBehind"]

MOST_BYTES: Final = 32 * 1024 * 1024
"""Rows that may wait, the write under way included: a second of what one task decides."""

# Between two looks at a write that takes long: its metrics are shown meanwhile.
_LOOK_SECONDS: Final = 0.5


class WriteBehind:
    """Runs `write` in a thread, one call at a time; for one caller.

    Args:
        write: stores rows before it returns, and may wait for as long as it takes.
        waiting: called now and then while the caller is held up.
        most_bytes: rows that may wait; more only if they came in one call.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        waiting: Callable[[], None] = lambda: None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._write = write
        self._waiting = waiting
        self._most_bytes = most_bytes
        self._changed = Condition()
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._running = False
        self._failure: BaseException | None = None

    def hand_over(self, rows: bytes) -> None:
        """Take rows to be stored as soon as there is room for them.

        Raises:
            BaseException: what the write of earlier rows raised; nothing is stored after it.
        """
        self._wait_until_at_most(max(0, self._most_bytes - len(rows)))
        with self._changed:
            self._queue.append(rows)
            self._bytes += len(rows)
            if not self._running:
                self._running = True
                Thread(target=self._run, name="write-behind", daemon=True).start()

    def settle(self) -> None:
        """Return when all rows are stored; raise what their write raised."""
        self._wait_until_at_most(0)

    def _wait_until_at_most(self, waiting_bytes: int) -> None:
        while True:
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                if self._bytes <= waiting_bytes:
                    return
                changed = self._changed.wait(_LOOK_SECONDS)
            if not changed:
                self._waiting()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._running = False
                    return
                rows = self._queue.popleft()
            failure: BaseException | None = None
            try:
                self._write(rows)
            except BaseException as e:  # noqa: BLE001 - raised in the task
                failure = e
            with self._changed:
                self._bytes -= len(rows)
                if failure is not None:
                    self._failure = failure
                    self._queue.clear()
                self._changed.notify_all()
