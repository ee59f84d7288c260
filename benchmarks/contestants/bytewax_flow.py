"""One process of the workload on Bytewax; the processes of a run find each other by their ports.

`python -m benchmarks.contestants.bytewax_flow JOB.json WORKER`, in the virtual environment of
`bytewax.txt`. Batches of one activation are scored at once (`flat_map_batch`), which its
documentation recommends for a model; state is snapshotted to the recovery store.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.contestants.payments import (
    ClickHouseRows,
    Decoder,
    Job,
    Log,
    Scorer,
    add_to_customer,
    add_to_terminal,
    event_inputs,
    new_log,
)

__all__ = ["main"]


def main(path: str, worker: str) -> None:
    """Run for ever."""
    import bytewax.operators as op  # noqa: PLC0415 - only in this program's own environment
    import redis  # noqa: PLC0415
    from bytewax._bytewax import cluster_main  # noqa: PLC0415
    from bytewax.connectors.kafka import (  # noqa: PLC0415
        KafkaSink,
        KafkaSinkMessage,
        KafkaSource,
        KafkaSourceMessage,
    )
    from bytewax.dataflow import Dataflow  # noqa: PLC0415
    from bytewax.outputs import DynamicSink, StatelessSinkPartition  # noqa: PLC0415
    from bytewax.recovery import RecoveryConfig, init_db_dir  # noqa: PLC0415

    job = Job.read(path)
    number = int(worker)
    decoder = Decoder(job.transaction_schema)
    scorer = Scorer(job, redis.Redis.from_url(job.redis))

    class RowsPartition(StatelessSinkPartition):  # type: ignore[misc, unused-ignore]
        """Inserts what was gathered."""

        def __init__(self) -> None:
            self._store = ClickHouseRows(job)

        def write_batch(self, items: list[tuple[str, list[dict[str, Any]]]]) -> None:
            for _, rows in items:
                self._store.add(rows)
            self._store.flush()

    class Rows(DynamicSink):  # type: ignore[misc, unused-ignore]
        """Inserts rows."""

        def build(self, step_id: str, worker_index: int, worker_count: int) -> RowsPartition:
            return RowsPartition()

    def decode(message: KafkaSourceMessage) -> tuple[str, dict[str, Any]]:
        payment = decoder.decode(message.value)
        payment["partition"] = message.partition
        payment["offset"] = message.offset
        payment["published_at_ms"] = message.timestamp[1]
        payment["ingested_at_ms"] = time.time_ns() // 1_000_000
        return payment["customer_id"], payment

    def customer(log: Log | None, payment: dict[str, Any]) -> tuple[Log, dict[str, Any]]:
        log = log or new_log()
        payment["features"] = [
            *event_inputs(payment),
            *add_to_customer(log, payment["event_time_ms"], payment["amount_minor"]),
        ]
        return log, payment

    def terminal(log: Log | None, payment: dict[str, Any]) -> tuple[Log, dict[str, Any]]:
        log = log or new_log()
        payment["features"] += add_to_terminal(log, payment["event_time_ms"])
        return log, payment

    def alert(row: dict[str, Any]) -> KafkaSinkMessage | None:
        if row["decision"] == "approve":
            return None
        return KafkaSinkMessage(row["customer_id"].encode(), scorer.alert(row))

    flow = Dataflow("payments")
    messages = op.input(
        "in",
        flow,
        KafkaSource(
            [job.kafka], [job.transactions], add_config={"fetch.wait.max.ms": "5"}, batch_size=1_000
        ),
    )
    payments = op.map("decode", messages, decode)
    counted = op.key_rm("by nothing", op.stateful_map("customer", payments, customer))
    by_terminal = op.key_on("by terminal", counted, lambda payment: payment["terminal_id"])
    windowed = op.key_rm("done", op.stateful_map("terminal", by_terminal, terminal))
    rows = op.flat_map_batch("score", windowed, scorer.score)
    op.output("alerts", op.filter_map("alert", rows, alert), KafkaSink([job.kafka], job.alerts))
    gathered = op.collect(
        "gather",
        op.key_on("by partition", rows, lambda row: str(row["kafka_partition"])),
        timeout=dt.timedelta(milliseconds=job.gather_ms),
        max_size=job.gather_rows,
    )
    op.output("rows", gathered, Rows())

    state = Path(job.home) / "state"
    if number == 0 and not any(state.iterdir()):
        init_db_dir(state, 2)
    while not any(state.iterdir()):
        time.sleep(0.05)
    ports = [int(text) for text in (Path(job.home) / "ports").read_text().split()]
    cluster_main(
        flow,
        [f"127.0.0.1:{port}" for port in ports],
        number,
        epoch_interval=dt.timedelta(seconds=job.checkpoint_ms / 1000),
        recovery_config=RecoveryConfig(str(state)),
        worker_count_per_proc=1,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
