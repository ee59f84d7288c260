"""Threads of a task's process that serve go after those that decide.

While a checkpoint is under way, threads of Flink copy RocksDB's files, four for each stage, and one
of RocksDB merges them, on the cores that the stages need: a tenth of a second of CPU every ten
seconds, and nobody waits for its end. Niceness holds for a thread on Linux, and any process may
raise its own. Elsewhere, and where Python has a process of its own, there are no such threads.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

__all__ = ["BACKGROUND", "NICENESS", "let_background_wait"]

BACKGROUND: Final = ("Flink-RocksDBSt", "rocksdb:low")
"""What the kernel calls them, 15 characters at most: uploads of state, and compactions. Flushes
(`rocksdb:high`) are not among them: a stage waits for those."""

NICENESS: Final = 19
"""The least that there is: a seventieth of a core beside a busy thread, all of an idle one."""

_TASKS: Final = "/proc/self/task"


def let_background_wait() -> int:
    """Lower the priority of the background threads that this process has; return how many it has.

    To be called now and then: such threads start when they are first needed. A look takes 1.4 ms
    among 150 threads.
    """
    found = 0
    with contextlib.suppress(OSError):
        for task in os.listdir(_TASKS):
            # A thread may end between the look and the call.
            with contextlib.suppress(OSError):
                if _name(task) in BACKGROUND:
                    os.setpriority(os.PRIO_PROCESS, int(task), NICENESS)
                    found += 1
    return found


def _name(task: str) -> str:
    # Not `Path.read_text`: a stage waits for the look, which takes four times as long with it.
    comm = os.open(f"{_TASKS}/{task}/comm", os.O_RDONLY)
    try:
        return os.read(comm, 64).decode(errors="replace").rstrip("\n")
    finally:
        os.close(comm)
