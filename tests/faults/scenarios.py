"""The faults of the matrix: what is done, and on which kind of job.

============  ==================================================================================
kind          what happens
============  ==================================================================================
kill          SIGKILL; the supervisor starts the part again
freeze        SIGSTOP for longer than every timeout that watches the part, then SIGCONT
break, split  connections reset, or a link that swallows everything (see `tests.faults.link`)
state         the disk quota of Flink's state, a transaction's time, a partition without payments
in the midst  a process that dies inside a fold, a checkpoint, a change of model and rules, or a
              migration
surge         ten times the steady rate for a minute; a dependency away for five minutes
============  ==================================================================================
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from benchmarks.processes import tree
from connectors.clickhouse import ClickHouseClient
from connectors.control import publish_control
from connectors.migrations import load_migrations, migrate, plan
from connectors.tables import SCORED_TABLE
from jobs.fraud.features import FRAUD_FEATURES
from models.control import make_control
from schemas.errors import RiskstreamError
from tests.faults.stand import Stand, StandError
from tests.faults.topics import letters
from tests.faults.variants import CRASHING_CUSTOMER, RAISING_CUSTOMER

__all__ = ["FAULTS", "LOADS", "Fault"]

# Longer than heartbeat.timeout, the ZooKeeper session (8 s) and ClickHouse's request timeout of the
# stand (5 s), so that each freeze is noticed by whoever waits for the frozen part.
FREEZE_SECONDS: Final = 12.0
BURST_TIMES: Final = 5
# Seconds of burst before the fault: its first rows are in flight then, and more are coming.
BURST_LEAD_SECONDS: Final = 1.0
SURGE_SECONDS: Final = 60.0
OUTAGE_SECONDS: Final = 300.0
# The least life of a transaction that the settings allow with checkpoints that give up after 4 s;
# the broker looks for those that are over every 10 s.
TRANSACTION_MS: Final = 40_000
EXPIRY_SECONDS: Final = 60.0

RULES: Final = """
format: 1
name: swapped-{number}
rules:
  - id: amount_above
    title: "An amount of {{amount}}."
    when: amount > {amount}
    then: review
    weight: 1
"""

LOADS: Final = ("steady", "burst")
Needs = Literal["links", "quota", "crash-in-fold", "brittle"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the matrix.

    Attributes:
        flink: settings of the job that it needs.
        needs: what the stand must have besides.
        from_its_end: count recovery from the end of the fault: it is a state, not an event.
        runs: how many runs a matrix makes of it.
    """

    name: str
    text: str
    happen: Callable[[Stand], None]
    flink: Mapping[str, object] = field(default_factory=dict)
    needs: Needs | None = None
    from_its_end: bool = False
    runs: int = 5


def _kill(part: str) -> Callable[[Stand], None]:
    return lambda stand: stand.kill(part)


def _kill_task_manager(stand: Stand) -> None:
    stand.kill(stand.busiest_task_manager())


def _freeze_part(stand: Stand, part: str, seconds: float) -> None:
    with stand.frozen(part):
        time.sleep(seconds)


def _freeze(part: str, seconds: float = FREEZE_SECONDS) -> Callable[[Stand], None]:
    return lambda stand: _freeze_part(stand, part, seconds)


def _freeze_task_manager(stand: Stand) -> None:
    _freeze_part(stand, stand.busiest_task_manager(), FREEZE_SECONDS)


def _reject_then_accept(stand: Stand) -> None:
    hidden = f"{SCORED_TABLE}_hidden"
    stand.clickhouse.execute(f"RENAME TABLE {SCORED_TABLE} TO {hidden}")
    try:
        time.sleep(5)
    finally:
        stand.clickhouse.execute(f"RENAME TABLE {hidden} TO {SCORED_TABLE}")


def _python_worker(stand: Stand) -> int:
    """Return a Python worker below a TaskManager: the processes of process mode."""
    task_managers = {stand.stack.pid_of(name) for name in ("taskmanager-1", "taskmanager-2")}
    below = {pid for root in task_managers for pid in tree(root)} - task_managers
    workers = sorted(pid for pid in below if "pyflink" in _command(pid))
    if not workers:
        msg = "no Python worker found below the TaskManagers; is this process mode?"
        raise StandError(msg)
    return workers[-1]


def _kill_python_worker(stand: Stand) -> None:
    os.kill(_python_worker(stand), signal.SIGKILL)


def _freeze_python_worker(stand: Stand) -> None:
    pid = _python_worker(stand)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(FREEZE_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _break(part: str) -> Callable[[Stand], None]:
    return lambda stand: stand.links[part].break_all()


def _split(part: str) -> Callable[[Stand], None]:
    def happen(stand: Stand) -> None:
        stand.links[part].cut()
        try:
            time.sleep(FREEZE_SECONDS)
        finally:
            stand.links[part].mend()

    return happen


def _fill_disk(stand: Stand) -> None:
    """Leave no byte free where Flink keeps its checkpoints, its working state and HA data."""
    filler = stand.stack.home / "flink" / "filler"
    free = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    try:
        time.sleep(FREEZE_SECONDS)
    finally:
        filler.unlink()


def _expire_transactions(stand: Stand) -> None:
    """Hold checkpoints up for longer than a transaction may live: no insert is answered."""
    _freeze_part(stand, "clickhouse", EXPIRY_SECONDS)


def _silence_partition(stand: Stand) -> None:
    """Send nothing to one partition for far longer than it takes to count as idle."""
    stand.load.silent_partition = 1
    try:
        time.sleep(FREEZE_SECONDS)
    finally:
        stand.load.silent_partition = None


def _crash_in_fold(stand: Stand) -> None:
    mark = stand.stack.home / "crash-in-fold"
    mark.touch()
    stand.wait("a fold that crashes", lambda: not mark.exists(), 60)


def _poison(customer: bytes, reason: str) -> Callable[[Stand], None]:
    """Publish a payment that the stage cannot bear; it must become a dead letter."""

    def happen(stand: Stand) -> None:
        known = letters(stand.settings, reason)
        stand.pay(customer)
        stand.wait("the dead letter", lambda: letters(stand.settings, reason) == known + 1, 180)

    return happen


# What was said of a checkpoint before its TaskManager was stopped has arrived by then.
CHECKPOINT_MESSAGES_SECONDS: Final = 0.2


def _crash_in_checkpoint(stand: Stand) -> None:
    failed, busiest = _failed_checkpoints(stand), stand.busiest_task_manager()
    for _ in range(20):
        stand.cluster._request("POST", f"/jobs/{stand.job_id}/checkpoints", {})
        # A checkpoint takes some fifty milliseconds: stopped, it cannot complete before the kill.
        with stand.frozen(busiest):
            time.sleep(CHECKPOINT_MESSAGES_SECONDS)
            caught = stand.cluster.checkpoints(stand.job_id)["counts"]["in_progress"]
            if caught:
                stand.kill(busiest)
        if caught:
            break
    stand.wait("the failed checkpoint", lambda: _failed_checkpoints(stand) > failed, 120)


def _failed_checkpoints(stand: Stand) -> int:
    try:
        return int(stand.cluster.checkpoints(stand.job_id)["counts"]["failed"])
    except RiskstreamError:
        return -1


def _crash_in_swap(stand: Stand) -> None:
    """Publish another model and other rules, and kill a task while they spread."""
    now_ms = time.time_ns() // 1_000_000
    text = RULES.format(number=now_ms, amount=500 + now_ms % 500)
    rules = make_control("activate_rules", "rules", "faults", now_ms, {"rules": text})
    model = make_control("activate_model", stand.other_model(), "faults", now_ms)
    busiest = stand.busiest_task_manager()
    publish_control(stand.settings, model.to_record())
    publish_control(stand.settings, rules.to_record())
    stand.kill(busiest)
    applied = (
        "SELECT uniqExact(control_id, shard) AS n FROM control_outcomes WHERE outcome = 'applied' "
        f"AND control_id IN ('{rules.control_id}', '{model.control_id}')"
    )
    stand.wait(
        "model and rules on every shard",
        lambda: stand.one(applied) == 2 * stand.settings.flink.shards,
    )


def _crash_in_migration(stand: Stand) -> None:
    """Kill ClickHouse between the statements of a migration, then migrate to the end."""
    now_ms = time.time_ns() // 1_000_000
    names = [*FRAUD_FEATURES.names, *(f"spare_{now_ms}_{number}" for number in range(40))]
    failures: list[BaseException] = []

    def add_columns() -> None:
        try:
            migrate(ClickHouseClient(stand.settings.clickhouse), names)
        except RiskstreamError as e:
            failures.append(e)

    thread = threading.Thread(target=add_columns, name="migration")
    thread.start()
    time.sleep(0.1)
    stand.kill("clickhouse")
    thread.join(timeout=60)

    def migrated() -> bool:
        try:
            client = ClickHouseClient(stand.settings.clickhouse)
            migrate(client, names)
            steps = plan(client, names, load_migrations())
        except RiskstreamError:
            return False
        return all(step.state == "done before" for step in steps)

    stand.wait("the migration", migrated, 120)
    if not failures:
        msg = "the migration was through before ClickHouse was killed; this run shows nothing"
        raise StandError(msg)


def _surge(stand: Stand) -> None:
    stand.load.pace.events_per_second = stand.rate * 10
    try:
        time.sleep(SURGE_SECONDS)
    finally:
        stand.load.pace.events_per_second = stand.rate


def in_burst(happen: Callable[[Stand], None]) -> Callable[[Stand], None]:
    """Let the fault happen while payments come several times as fast."""

    def during(stand: Stand) -> None:
        stand.load.pace.events_per_second = stand.rate * BURST_TIMES
        try:
            time.sleep(BURST_LEAD_SECONDS)
            happen(stand)
            time.sleep(BURST_LEAD_SECONDS)
        finally:
            stand.load.pace.events_per_second = stand.rate

    return during


EXACTLY_ONCE: Final = {"delivery": "exactly-once"}
PROCESS: Final = {"execution_mode": "process"}

FAULTS: Final = (
    Fault("kill-taskmanager", "kill -9 of a TaskManager", _kill_task_manager, runs=20),
    Fault(
        "kill-jobmanager",
        "kill -9 of the JobManager (high availability on)",
        _kill("jobmanager"),
        runs=20,
    ),
    Fault("kill-kafka", "kill -9 of the Kafka broker", _kill("kafka")),
    Fault("kill-redis", "kill -9 of Redis", _kill("redis")),
    Fault("kill-clickhouse", "kill -9 of ClickHouse", _kill("clickhouse")),
    Fault(
        "freeze-taskmanager",
        f"SIGSTOP of a TaskManager for {FREEZE_SECONDS:.0f} s",
        _freeze_task_manager,
    ),
    *(
        Fault(f"freeze-{part}", f"SIGSTOP of {text} for {FREEZE_SECONDS:.0f} s", _freeze(part))
        for text, part in (
            ("the JobManager", "jobmanager"),
            ("Kafka", "kafka"),
            ("Redis", "redis"),
            ("ClickHouse", "clickhouse"),
        )
    ),
    Fault(
        "reject-clickhouse",
        "ClickHouse refuses inserts for 5 s (no such table), then accepts",
        _reject_then_accept,
    ),
    Fault(
        "idle-partition",
        f"one of two partitions gets no payments for {FREEZE_SECONDS:.0f} s",
        _silence_partition,
        from_its_end=True,
    ),
    Fault(
        "crash-in-checkpoint",
        "kill -9 of a TaskManager while a checkpoint is taken",
        _crash_in_checkpoint,
    ),
    Fault(
        "crash-in-swap",
        "kill -9 of a TaskManager while a model and rules come into force",
        _crash_in_swap,
    ),
    Fault(
        "crash-in-migration",
        "kill -9 of ClickHouse in the middle of a migration",
        _crash_in_migration,
    ),
    Fault(
        "crash-in-fold",
        "the process dies in the middle of a state fold",
        _crash_in_fold,
        needs="crash-in-fold",
    ),
    Fault(
        "poison-crash",
        "a record ends the process that decodes it (SIGSEGV)",
        _poison(CRASHING_CUSTOMER, "stage_crashed"),
        needs="brittle",
    ),
    Fault(
        "poison-raise",
        "a record makes a stage raise what nobody thought of",
        _poison(RAISING_CUSTOMER, "stage_failed"),
        needs="brittle",
    ),
    *(
        Fault(
            f"break-{part}",
            f"all connections of the job to {text} reset",
            _break(part),
            needs="links",
        )
        for part, text in (("kafka", "Kafka"), ("redis", "Redis"), ("clickhouse", "ClickHouse"))
    ),
    *(
        Fault(
            f"split-{part}",
            f"no byte passes between the job and {text} for {FREEZE_SECONDS:.0f} s",
            _split(part),
            needs="links",
        )
        for part, text in (("kafka", "Kafka"), ("redis", "Redis"), ("clickhouse", "ClickHouse"))
    ),
    Fault(
        "disk-full",
        f"the disk quota of Flink's state is full for {FREEZE_SECONDS:.0f} s",
        _fill_disk,
        needs="quota",
    ),
    Fault(
        "kill-taskmanager-exactly-once",
        "kill -9 of a TaskManager, delivery exactly-once",
        _kill_task_manager,
        EXACTLY_ONCE,
    ),
    Fault(
        "kill-kafka-exactly-once",
        "kill -9 of the Kafka broker, delivery exactly-once",
        _kill("kafka"),
        EXACTLY_ONCE,
    ),
    Fault(
        "expire-transactions",
        f"no checkpoint for {EXPIRY_SECONDS:.0f} s, transactions expire after "
        f"{TRANSACTION_MS // 1000} s, delivery exactly-once",
        _expire_transactions,
        {
            **EXACTLY_ONCE,
            "checkpoint_timeout_ms": 4_000,
            "transaction_timeout_ms": TRANSACTION_MS,
        },
    ),
    Fault(
        "kill-python-worker",
        "kill -9 of a Python worker, process mode",
        _kill_python_worker,
        PROCESS,
    ),
    Fault(
        "freeze-python-worker",
        f"SIGSTOP of a Python worker for {FREEZE_SECONDS:.0f} s, process mode",
        _freeze_python_worker,
        PROCESS,
    ),
    Fault(
        "surge",
        f"ten times the steady rate for {SURGE_SECONDS:.0f} s",
        _surge,
        from_its_end=True,
        runs=3,
    ),
    *(
        Fault(
            f"outage-{part}",
            f"{text} away for {OUTAGE_SECONDS / 60:.0f} minutes",
            _freeze(part, OUTAGE_SECONDS),
            from_its_end=True,
            runs=1,
        )
        for part, text in (("kafka", "Kafka"), ("redis", "Redis"), ("clickhouse", "ClickHouse"))
    ),
)
"""Every fault, in the order they are tried."""
