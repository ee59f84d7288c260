"""The bare cost of everything an event needs, each measured alone, and what we make of it.

What needs no server is in `bare.py`. Here are the costs of reading from Kafka, asking Redis,
inserting into ClickHouse and publishing alerts, as CPU of the client's process for each event.
Their sum is what no engine on these libraries can go below; efficiency is that sum over our CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, Producer

from benchmarks.bare import bare_costs
from benchmarks.contestants.payments import FEATURES
from benchmarks.load import send_flat_out
from benchmarks.services import Services
from benchmarks.workload import Workload
from connectors.clickhouse import ClickHouseWriter
from connectors.kafka import librdkafka_config
from connectors.profiles import profile_key, redis_client
from connectors.row_binary import NameSets
from connectors.settings import Settings
from connectors.tables import SCORED_TABLE, scored_layout
from jobs.fraud.resources import prepare
from schemas.columns import StringColumn

__all__ = ["efficiency", "measure_limits"]

EVENTS: Final = 100_000
BATCH: Final = 500
REPEATS: Final = 20
ROWS: Final = 20_000
# Of 1,000 simulated payments about this many raise an alert, and an alert is about this long.
ALERT_SHARE: Final = 0.02
ALERT_BYTES: Final = 600
NUMBERS: Final = (
    *("event_time_ms", "amount_minor", "channel", "score", "decision", "flags"),
    *("kafka_partition", "kafka_offset", "published_at_ms", "ingested_at_ms", "decided_at_ms"),
    "seen_order",
)
TEXTS: Final = (
    *("customer_id", "terminal_id", "merchant_id", "currency", "country", "tenant"),
    *("model_version", "rule_set_version", "feature_set_version", "kafka_topic"),
)


def measure_limits(services: Services, workload: Workload) -> dict[str, float]:
    """Return microseconds of CPU per event by part; the servers' own CPU is not in them."""
    settings = services.settings_of("limits")
    prepare(settings)
    costs = dict(bare_costs(Workload(BATCH * (REPEATS + 1)), BATCH, REPEATS))
    costs["kafka_read_us"] = _kafka_read(settings, workload)
    costs["kafka_write_us"] = round(_kafka_write(settings) * ALERT_SHARE, 4)
    costs["redis_miss_us"] = _redis(settings, workload)
    costs["clickhouse_insert_us"] = _clickhouse(settings)
    return costs


def efficiency(costs: dict[str, float], cpu_us_per_event: float) -> dict[str, float]:
    """Return the sum of the parts that every event needs, and its share in our CPU per event.

    A payment is decoded once and looks two profiles up in the cache; misses are not counted, which
    makes the sum, and the efficiency, smaller.
    """
    parts = (
        "kafka_read_us",
        "decode_us",
        "customer_windows_us",
        "terminal_windows_us",
        "model_us",
        "clickhouse_insert_us",
        "kafka_write_us",
    )
    total = sum(costs[part] for part in parts) + 2 * costs["profile_cache_us"]
    return {
        "sum_us": round(total, 3),
        "ours_us": cpu_us_per_event,
        "efficiency": round(total / cpu_us_per_event, 3),
    }


def _cpu_us(work: Callable[[], int]) -> float:
    began = time.process_time_ns()
    done = work()
    return round((time.process_time_ns() - began) / 1000 / done, 4)


def _kafka_read(settings: Settings, workload: Workload) -> float:
    configuration: dict[str, object] = dict(librdkafka_config(settings.kafka))
    topic = settings.kafka.topics.name("transactions")
    records = workload.records[:EVENTS]
    send_flat_out(configuration, topic, records)
    consumer = Consumer({**configuration, "group.id": "limits", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        consumer.poll(10.0)
        return _cpu_us(lambda: _read_rest(consumer, len(records) - 1))
    finally:
        consumer.close()


def _read_rest(consumer: Any, records: int) -> int:
    count = 0
    while count < records:
        found = len(consumer.consume(10_000, 5.0))
        if not found:
            msg = f"reading {records} records back: none came for 5 s after {count}"
            raise RuntimeError(msg)
        count += found
    return count


def _kafka_write(settings: Settings) -> float:
    configuration: dict[str, object] = dict(librdkafka_config(settings.kafka))
    topic = settings.kafka.topics.name("alerts")
    producer = Producer({**configuration, "linger.ms": 5})
    value = bytes(ALERT_BYTES)

    def write() -> int:
        for number in range(BATCH * 20):
            producer.produce(topic, value, b"customer")
            if number % BATCH == 0:
                producer.poll(0)
        producer.flush(30)
        return BATCH * 20

    write()
    return _cpu_us(write)


def _redis(settings: Settings, workload: Workload) -> float:
    client = redis_client(settings.redis)
    keys = [profile_key("customer", record.key) for record in workload.records[:BATCH]]

    def ask() -> int:
        for _ in range(20):
            client.mget(keys)
        return 20 * len(keys)

    ask()
    return _cpu_us(ask)


def _clickhouse(settings: Settings) -> float:
    layout = scored_layout(FEATURES)
    ids = StringColumn.from_texts([f"limits-{number}" for number in range(ROWS)])
    plain = dict.fromkeys(NUMBERS, 0)
    texts = dict.fromkeys(TEXTS, "text")
    packed = layout.pack(
        {
            **plain,
            **texts,
            "event_id": ids,
            "rules_fired": NameSets(np.zeros(ROWS, np.uint64), ["none"]),
            "features": np.zeros((ROWS, len(FEATURES))),
        },
        ROWS,
    )
    writer = ClickHouseWriter(settings.clickhouse)

    def insert() -> int:
        for number in range(5):
            writer.insert(
                SCORED_TABLE, layout, ROWS, packed, token=f"limits-{time.time_ns()}-{number}"
            )
        return 5 * ROWS

    insert()
    found = _cpu_us(insert)
    writer.close()
    return found
