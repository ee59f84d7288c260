"""One process of the workload on Pathway; `pathway spawn` starts as many as it is told.

`python -m benchmarks.contestants.pathway_app JOB.json`, in the virtual environment of
`pathway.txt`. Windows are stateful reducers, whose results are streams of changes; payments are
scored by a function on batches. What was read is persisted, and after a failure it is computed
again: to persist the state of operators takes a licence key, for which one has to register.
"""

import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.contestants.payments import (
    ClickHouseRows,
    Decoder,
    Job,
    Scorer,
    add_to_customer,
    add_to_terminal,
    event_inputs,
    new_log,
)

__all__ = ["main"]

COMMIT_MS: Final = 20
"""Messages of this long form a batch: less keeps the engine busy with empty batches."""
BACKLOG: Final = 20_000
SCORED_AT_ONCE: Final = 1_000


def main(path: str) -> None:
    """Run for ever."""
    import pathway as pw  # noqa: PLC0415 - only in this program's own environment
    import redis  # noqa: PLC0415

    job = Job.read(path)
    decoder = Decoder(job.transaction_schema)
    scorer = Scorer(job, redis.Redis.from_url(job.redis))
    store = ClickHouseRows(job)

    # A state is the log of a key and what the newest batch made of it.
    @pw.reducers.stateful_many  # type: ignore[untyped-decorator, unused-ignore]
    def customer(
        state: tuple[bytes, list[Any]] | None, rows: list[tuple[list[Any], int]]
    ) -> tuple[bytes, list[Any]]:
        log = pickle.loads(state[0]) if state else new_log()
        made = []
        # The order within a batch is not that of arrival.
        for (data, place), _ in sorted(rows, key=lambda row: row[0][1]["offset"].as_int()):
            payment = decoder.decode(data)
            payment["partition"] = place["partition"].as_int()
            payment["offset"] = place["offset"].as_int()
            payment["published_at_ms"] = place["timestamp_millis"].as_int()
            payment["ingested_at_ms"] = time.time_ns() // 1_000_000
            payment["features"] = [
                *event_inputs(payment),
                *add_to_customer(log, payment["event_time_ms"], payment["amount_minor"]),
            ]
            made.append((payment["terminal_id"], pickle.dumps(payment)))
        return pickle.dumps(log), made

    @pw.reducers.stateful_many  # type: ignore[untyped-decorator, unused-ignore]
    def terminal(
        state: tuple[bytes, list[Any]] | None, rows: list[tuple[list[Any], int]]
    ) -> tuple[bytes, list[Any]]:
        log = pickle.loads(state[0]) if state else new_log()
        payments = [pickle.loads(row[0]) for row, _ in rows]
        payments.sort(key=lambda payment: payment["event_time_ms"])
        for payment in payments:
            payment["features"] += add_to_terminal(log, payment["event_time_ms"])
        return pickle.dumps(log), [pickle.dumps(payment) for payment in payments]

    @pw.udf(deterministic=True)  # type: ignore[untyped-decorator, unused-ignore]
    def counted_payments(state: tuple[bytes, list[Any]]) -> list[tuple[str, bytes]]:
        return state[1]

    @pw.udf(deterministic=True)  # type: ignore[untyped-decorator, unused-ignore]
    def windowed_payments(state: tuple[bytes, list[Any]]) -> list[bytes]:
        return state[1]

    @pw.udf(max_batch_size=SCORED_AT_ONCE)  # type: ignore[untyped-decorator, unused-ignore]
    def score(payments: list[bytes]) -> list[bytes]:
        rows = scorer.score([pickle.loads(payment) for payment in payments])
        return [pickle.dumps(row) for row in rows]

    @pw.udf(deterministic=True)  # type: ignore[untyped-decorator, unused-ignore]
    def alert(row: bytes) -> tuple[bytes, bytes] | None:
        found = pickle.loads(row)
        if found["decision"] == "approve":
            return None
        return found["customer_id"].encode(), scorer.alert(found)

    # Time stands still while nothing comes, so a thread stores the last rows of a load.
    at_store = threading.Lock()

    def keep(key: object, row: dict[str, Any], time: int, is_addition: bool) -> None:
        with at_store:
            store.add([pickle.loads(row["row"])])

    def tick() -> None:
        while True:
            time.sleep(job.gather_ms / 4000)
            with at_store:
                store.tick()

    messages = pw.io.kafka.read(
        {
            "bootstrap.servers": job.kafka,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": "5",
        },
        topic=job.transactions,
        format="raw",
        autogenerate_key=True,
        with_metadata=True,
        autocommit_duration_ms=COMMIT_MS,
        max_backlog_size=BACKLOG,
        name="payments",
    )
    counted = (
        messages.groupby(pw.this.key)
        .reduce(state=customer(pw.this.data, pw.this["_metadata"]))
        .to_stream()
        .filter(pw.this.is_upsert)
        .select(made=counted_payments(pw.this.state))
        .flatten(pw.this.made)
    )
    windowed = (
        counted.select(terminal=pw.this.made[0], payment=pw.this.made[1])
        .groupby(pw.this.terminal)
        .reduce(state=terminal(pw.this.payment))
        .to_stream()
        .filter(pw.this.is_upsert)
        .select(payment=windowed_payments(pw.this.state))
        .flatten(pw.this.payment)
    )
    rows = windowed.select(row=score(pw.this.payment))
    made = rows.select(alert=alert(pw.this.row))
    alerts = made.filter(made.alert.is_not_none()).select(
        key=pw.unwrap(pw.this.alert)[0], value=pw.unwrap(pw.this.alert)[1]
    )
    pw.io.kafka.write(
        alerts,
        {"bootstrap.servers": job.kafka, "linger.ms": "1"},
        job.alerts,
        format="raw",
        key=alerts.key,
        value=alerts.value,
    )
    pw.io.subscribe(rows, on_change=keep)
    threading.Thread(target=tick, daemon=True).start()
    pw.run(
        monitoring_level=pw.MonitoringLevel.NONE,
        persistence_config=pw.persistence.Config(
            pw.persistence.Backend.filesystem(Path(job.home) / "state"),
            snapshot_interval_ms=job.checkpoint_ms,
        ),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
