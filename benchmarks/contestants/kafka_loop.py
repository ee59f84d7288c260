"""The floor: kafka-python, a pandas frame a poll, dictionaries of windows. State does not survive.

Run as a program it is one worker: `python -m benchmarks.contestants.kafka_loop JOB.json`. Terminals
of all partitions meet in one dictionary, so there can be only one worker.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from benchmarks.contestants.payments import (
    FEATURES,
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

POLL_MS: Final = 5
JOIN_MS: Final = 5_000
"""Until partitions are assigned: each poll begins the search for the coordinator anew."""
MOST: Final = 500


def main(path: str) -> None:
    """Consume for ever."""
    import pandas as pd  # noqa: PLC0415 - the bench imports this module for its name
    import redis  # noqa: PLC0415
    from kafka import KafkaConsumer, KafkaProducer  # noqa: PLC0415

    job = Job.read(path)
    decoder = Decoder(job.transaction_schema)
    scorer = Scorer(job, redis.Redis.from_url(job.redis))
    store = ClickHouseRows(job)
    producer = KafkaProducer(bootstrap_servers=job.kafka, linger_ms=0)
    consumer = KafkaConsumer(
        job.transactions,
        bootstrap_servers=job.kafka,
        group_id=job.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=MOST,
        fetch_max_wait_ms=POLL_MS,
    )
    customers: dict[str, Log] = {}
    terminals: dict[str, Log] = {}
    while True:
        polled = consumer.poll(POLL_MS if consumer.assignment() else JOIN_MS)
        now_ms = time.time_ns() // 1_000_000
        payments: list[dict[str, Any]] = []
        for messages in polled.values():
            for message in messages:
                payment = decoder.decode(message.value)
                time_ms = payment["event_time_ms"]
                customer = customers.setdefault(payment["customer_id"], new_log())
                terminal = terminals.setdefault(payment["terminal_id"], new_log())
                payment["windows"] = [
                    *event_inputs(payment),
                    *add_to_customer(customer, time_ms, payment["amount_minor"]),
                    *add_to_terminal(terminal, time_ms),
                ]
                payment["partition"] = message.partition
                payment["offset"] = message.offset
                payment["published_at_ms"] = message.timestamp
                payment["ingested_at_ms"] = now_ms
                payments.append(payment)
        if payments:
            frame = pd.DataFrame([payment["windows"] for payment in payments], columns=FEATURES)
            for payment, features in zip(payments, frame.to_numpy().tolist(), strict=True):
                payment["features"] = features
            rows = scorer.score(payments)
            for row in rows:
                if row["decision"] != "approve":
                    producer.send(job.alerts, scorer.alert(row), row["customer_id"].encode())
            store.add(rows)
        else:
            store.tick()


if __name__ == "__main__":
    main(sys.argv[1])
