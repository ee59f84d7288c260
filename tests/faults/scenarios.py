"""The faults of the matrix: what is done, and on which kind of job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from connectors.tables import SCORED_TABLE
from tests.faults.stand import Stand

__all__ = ["FAULTS", "Fault"]

# Longer than heartbeat.timeout (8 s), the ZooKeeper session (8 s) and ClickHouse's request timeout
# of the stand (5 s), so that each freeze is noticed by whoever waits for the frozen part.
FREEZE_SECONDS: Final = 12.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the matrix; `flink` are settings of the job that it needs."""

    name: str
    text: str
    happen: Callable[[Stand], None]
    flink: Mapping[str, object] = field(default_factory=dict)


def _kill(part: str) -> Callable[[Stand], None]:
    return lambda stand: stand.kill(part)


def _freeze(part: str) -> Callable[[Stand], None]:
    return lambda stand: stand.freeze(part, FREEZE_SECONDS)


def _reject_then_accept(stand: Stand) -> None:
    hidden = f"{SCORED_TABLE}_hidden"
    stand.clickhouse.execute(f"RENAME TABLE {SCORED_TABLE} TO {hidden}")
    try:
        time.sleep(5)
    finally:
        stand.clickhouse.execute(f"RENAME TABLE {hidden} TO {SCORED_TABLE}")


def _kill_python_worker(stand: Stand) -> None:
    """Kill every Python worker below one TaskManager: the processes of process mode."""
    task_managers = {stand.stack.pid_of(name) for name in ("taskmanager-1", "taskmanager-2")}
    workers = [pid for pid in _descendants(task_managers) if "pyflink" in _command(pid)]
    if not workers:
        msg = "no Python worker found below the TaskManagers; is this process mode?"
        raise AssertionError(msg)
    os.kill(workers[-1], signal.SIGKILL)


def _descendants(roots: set[int]) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found = []
    for pid in sorted(parents):
        at = parents[pid]
        while at > 1:
            if at in roots:
                found.append(pid)
                break
            at = parents.get(at, 0)
    return found


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


FAULTS: Final = tuple(
    [
        Fault(
            "kill-taskmanager",
            "kill -9 of a TaskManager",
            _kill("taskmanager-1"),
        ),
        Fault(
            "kill-jobmanager",
            "kill -9 of the JobManager (high availability on)",
            _kill("jobmanager"),
        ),
        Fault("kill-kafka", "kill -9 of the Kafka broker", _kill("kafka")),
        Fault("kill-redis", "kill -9 of Redis", _kill("redis")),
        Fault("kill-clickhouse", "kill -9 of ClickHouse", _kill("clickhouse")),
        Fault(
            "freeze-taskmanager",
            f"SIGSTOP of a TaskManager for {FREEZE_SECONDS:.0f} s",
            _freeze("taskmanager-2"),
        ),
        Fault(
            "freeze-jobmanager",
            f"SIGSTOP of the JobManager for {FREEZE_SECONDS:.0f} s",
            _freeze("jobmanager"),
        ),
        Fault("freeze-kafka", f"SIGSTOP of Kafka for {FREEZE_SECONDS:.0f} s", _freeze("kafka")),
        Fault("freeze-redis", f"SIGSTOP of Redis for {FREEZE_SECONDS:.0f} s", _freeze("redis")),
        Fault(
            "freeze-clickhouse",
            f"SIGSTOP of ClickHouse for {FREEZE_SECONDS:.0f} s",
            _freeze("clickhouse"),
        ),
        Fault(
            "reject-clickhouse",
            "ClickHouse refuses inserts for 5 s (no such table), then accepts",
            _reject_then_accept,
        ),
        Fault(
            "kill-taskmanager-exactly-once",
            "kill -9 of a TaskManager, delivery exactly-once",
            _kill("taskmanager-1"),
            {"delivery": "exactly-once"},
        ),
        Fault(
            "kill-python-worker",
            "kill -9 of a Python worker, process mode",
            _kill_python_worker,
            {"execution_mode": "process"},
        ),
    ]
)
"""Every fault, in the order they are tried."""
