"""The workload in micro-batches that Flink SQL makes: what `flink run -py` starts.

Arguments: the job file, and `thread` or `process`. SQL's Kafka source gives bytes and coordinates;
a tumbling window in processing time with ARRAY_AGG makes a batch of each shard; the batches go on
as a stream, since SQL functions in Python keep no state from one batch to the next. Both outputs
are those of `pyflink_job`.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Iterator
from typing import Any, Final
from zlib import crc32

from pyflink.common import Configuration, Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.state import MapStateDescriptor
from pyflink.table import StreamTableEnvironment

from benchmarks.contestants.payments import (
    Decoder,
    Job,
    Scorer,
    add_to_customer,
    add_to_terminal,
    event_inputs,
    new_log,
)
from benchmarks.contestants.pyflink_sinks import BYTES, packets_of, write_packets

__all__ = ["main"]

SHARDS: Final = 4
WINDOW_SECONDS: Final = 0.05
"""Shorter windows reset their hash tables more often than they have payments to put there."""

SOURCE: Final = """
CREATE TABLE payments (
  customer STRING,
  payment BYTES,
  `partition` INT METADATA VIRTUAL,
  `offset` BIGINT METADATA VIRTUAL,
  published TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  arrived AS PROCTIME()
) WITH (
  'connector' = 'kafka',
  'topic' = '{topic}',
  'properties.bootstrap.servers' = '{servers}',
  'properties.group.id' = '{group}',
  'properties.fetch.max.wait.ms' = '5',
  'scan.startup.mode' = 'earliest-offset',
  'key.format' = 'raw',
  'key.fields' = 'customer',
  'value.format' = 'raw',
  'value.fields-include' = 'EXCEPT_KEY'
)"""

BATCHES: Final = """
SELECT
  shard,
  ARRAY_AGG(payment) AS payments,
  ARRAY_AGG(`partition`) AS partitions,
  ARRAY_AGG(`offset`) AS offsets,
  ARRAY_AGG(published_ms) AS published
FROM TABLE(TUMBLE(
  TABLE sharded, DESCRIPTOR(arrived), INTERVAL '{window}' SECOND))
GROUP BY window_start, window_end, shard"""

SHARDED: Final = """
CREATE TEMPORARY VIEW sharded AS
SELECT
  MOD(ABS(HASH_CODE(customer)), {shards}) AS shard,
  payment, `partition`, `offset`, arrived,
  CAST(1000 AS BIGINT)
    * TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', CAST(published AS TIMESTAMP(3)))
    + EXTRACT(MILLISECOND FROM published) AS published_ms
FROM payments"""

BATCH_TYPE: Final = Types.ROW(
    [
        Types.INT(),
        Types.OBJECT_ARRAY(Types.PRIMITIVE_ARRAY(Types.BYTE())),
        Types.OBJECT_ARRAY(Types.INT()),
        Types.OBJECT_ARRAY(Types.LONG()),
        Types.OBJECT_ARRAY(Types.LONG()),
    ]
)


class CustomerBatches(KeyedProcessFunction):  # type: ignore[misc]
    """Decodes a batch and adds the features of event and customer."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def open(self, runtime_context: RuntimeContext) -> None:
        """Parse the schema and declare the state."""
        self._decoder = Decoder(self._job.transaction_schema)
        self._logs = runtime_context.get_map_state(
            MapStateDescriptor("logs", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(
        self, value: Row, ctx: KeyedProcessFunction.Context
    ) -> Iterator[tuple[int, bytes]]:
        """Count a batch; yield a batch for each shard of terminals."""
        now_ms = time.time_ns() // 1_000_000
        _, payments, partitions, offsets, published = value
        shards: list[list[dict[str, Any]]] = [[] for _ in range(SHARDS)]
        changed: dict[str, Any] = {}
        for data, partition, offset, published_ms in zip(
            payments, partitions, offsets, published, strict=True
        ):
            payment = self._decoder.decode(bytes(data))
            customer = payment["customer_id"]
            log = changed.get(customer) or self._logs.get(customer) or new_log()
            payment["features"] = [
                *event_inputs(payment),
                *add_to_customer(log, payment["event_time_ms"], payment["amount_minor"]),
            ]
            changed[customer] = log
            payment["partition"] = partition
            payment["offset"] = offset
            payment["published_at_ms"] = published_ms
            payment["ingested_at_ms"] = now_ms
            shards[crc32(payment["terminal_id"].encode()) % SHARDS].append(payment)
        for customer, log in changed.items():
            self._logs.put(customer, log)
        for shard, batch in enumerate(shards):
            if batch:
                yield shard, pickle.dumps(batch)


class DecideBatches(KeyedProcessFunction):  # type: ignore[misc]
    """Adds the features of the terminal, scores a batch and packs its outputs."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def open(self, runtime_context: RuntimeContext) -> None:
        """Declare the state, load the model, connect to Redis."""
        import redis  # noqa: PLC0415 - only where it runs

        self._logs = runtime_context.get_map_state(
            MapStateDescriptor("logs", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        )
        self._scorer = Scorer(self._job, redis.Redis.from_url(self._job.redis))

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterator[bytes]:
        """Count and score a batch."""
        payments = pickle.loads(bytes(value[1]))
        changed: dict[str, Any] = {}
        for payment in payments:
            terminal = payment["terminal_id"]
            log = changed.get(terminal) or self._logs.get(terminal) or new_log()
            payment["features"] += add_to_terminal(log, payment["event_time_ms"])
            changed[terminal] = log
        for terminal, log in changed.items():
            self._logs.put(terminal, log)
        yield packets_of(self._scorer.score(payments), self._scorer, self._job)


def main(path: str, mode: str) -> None:
    """Build the graph and submit it."""
    job = Job.read(path)
    configuration = Configuration()
    for key, value in {
        "pipeline.name": "payments-pyflink-sql",
        "python.execution-mode": mode,
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.fn-execution.bundle.time": "5",
        "python.state.cache-size": "100000",
        "table.local-time-zone": "UTC",
        "table.exec.resource.default-parallelism": str(job.parallelism),
        "parallelism.default": str(job.parallelism),
        "pipeline.object-reuse": "true",
        "execution.buffer-timeout.interval": "1ms",
        "execution.checkpointing.interval": f"{job.checkpoint_ms}ms",
        "execution.checkpointing.dir": job.checkpoints,
        "state.backend.type": "hashmap",
    }.items():
        configuration.set_string(key, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    tables = StreamTableEnvironment.create(env)
    tables.execute_sql(SOURCE.format(topic=job.transactions, servers=job.kafka, group=job.group))
    tables.execute_sql(SHARDED.format(shards=SHARDS))
    batches = tables.sql_query(BATCHES.format(window=WINDOW_SECONDS))
    packets = (
        tables.to_append_stream(batches, BATCH_TYPE)
        .key_by(lambda batch: batch[0], Types.INT())
        .process(
            CustomerBatches(job), Types.TUPLE([Types.INT(), Types.PRIMITIVE_ARRAY(Types.BYTE())])
        )
        .key_by(lambda batch: batch[0], Types.INT())
        .process(DecideBatches(job), BYTES)
    )
    write_packets(packets, job)
    env.execute_async("payments-pyflink-sql")


if __name__ == "__main__":
    main(*sys.argv[1:])
