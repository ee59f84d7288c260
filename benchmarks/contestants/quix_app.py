"""One worker of the workload on Quix Streams, one record at a time, as its documentation shows.

`python -m benchmarks.contestants.quix_app JOB.json WORKER`, in the virtual environment of
`quix.txt`. State is RocksDB with changelog topics; terminals are reached by `group_by`, which sends
each payment through a topic; a checkpoint a second writes the rows.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

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


def main(path: str, worker: str) -> None:
    """Run for ever."""
    import redis  # noqa: PLC0415 - only in this program's own environment
    from quixstreams import Application, message_context  # noqa: PLC0415
    from quixstreams.models import Serializer  # noqa: PLC0415
    from quixstreams.sinks import BatchingSink  # noqa: PLC0415

    job = Job.read(path)
    decoder = Decoder(job.transaction_schema)
    scorer = Scorer(job, redis.Redis.from_url(job.redis))
    store = ClickHouseRows(job)
    app = Application(
        broker_address=job.kafka,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        commit_interval=job.gather_ms / 1000,
        state_dir=str(Path(job.home) / "state" / worker),
        # A worker that was killed is missed after ten seconds instead of 45.
        consumer_extra_config={"fetch.wait.max.ms": 5, "session.timeout.ms": 10_000},
        producer_extra_config={"linger.ms": 1},
        loglevel="WARNING",
    )
    source = app.topic(job.transactions, value_deserializer="bytes", key_deserializer="bytes")

    class Alert(Serializer):  # type: ignore[misc, unused-ignore]
        """Writes a row as an alert."""

        def __call__(self, value: dict[str, Any], ctx: object) -> bytes:
            return scorer.alert(value)

    alerts = app.topic(job.alerts, value_serializer=Alert(), key_serializer="string")

    class Rows(BatchingSink):  # type: ignore[misc, unused-ignore]
        """Inserts a checkpoint's rows."""

        def write(self, batch: Any) -> None:
            store.add(item.value for item in batch)
            store.flush()

    def decode(value: bytes, key: object, timestamp: int, headers: object) -> dict[str, Any]:
        payment = decoder.decode(value)
        context = message_context()
        payment["partition"] = context.partition
        payment["offset"] = context.offset
        payment["published_at_ms"] = timestamp
        payment["ingested_at_ms"] = time.time_ns() // 1_000_000
        return payment

    def customer(payment: dict[str, Any], state: Any) -> dict[str, Any]:
        log = state.get("log") or new_log()
        payment["features"] = [
            *event_inputs(payment),
            *add_to_customer(log, payment["event_time_ms"], payment["amount_minor"]),
        ]
        state.set("log", log)
        return payment

    def terminal(payment: dict[str, Any], state: Any) -> dict[str, Any]:
        log = state.get("log") or new_log()
        payment["features"] += add_to_terminal(log, payment["event_time_ms"])
        state.set("log", log)
        return payment

    frame = app.dataframe(source)
    frame = frame.apply(decode, metadata=True).apply(customer, stateful=True)
    frame = frame.group_by(lambda payment: payment["terminal_id"], name="terminal")
    frame = frame.apply(terminal, stateful=True)
    frame = frame.apply(lambda payment: scorer.score([payment])[0])
    frame.filter(lambda row: row["decision"] != "approve").to_topic(
        alerts, key=lambda row: row["customer_id"]
    )
    frame.sink(Rows())
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
