"""The workload as a PyFlink DataStream job, one record at a time: what `flink run -py` starts.

Arguments: the job file, and `thread` or `process`. PyFlink can read neither a record's coordinates
nor bytes from Kafka and has no sink for ClickHouse, so our bridge's source, sink and row gathering
stand at both ends; between them it is plain PyFlink: decode, `key_by`, keyed state, `key_by`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any

from pyflink.common import Configuration, Types
from pyflink.datastream import (
    DataStream,
    KeyedProcessFunction,
    MapFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from pyflink.datastream.state import ValueStateDescriptor
from pyflink.java_gateway import get_gateway

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

# The frame of docs/architecture.md; one at a time this is faster than the columnar reader.
FRAME = "<IBBHiIqqqIIII"


# More often costs a quarter of a core: each is a message to the JobManager and through Python.
ALIGNMENT_MS = 80


class Decode(MapFunction):  # type: ignore[misc]
    """A frame becomes a payment."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def open(self, runtime_context: RuntimeContext) -> None:
        """Parse the schema."""
        self._decoder = Decoder(self._job.transaction_schema)
        self._frame = struct.Struct(FRAME)

    def map(self, value: Any) -> dict[str, Any]:
        """Return one payment."""
        frame = bytes(value)
        _, _, _, topic, partition, _, offset, published_ms, ingested_ms, key, headers, length, _ = (
            self._frame.unpack_from(frame)
        )
        at = self._frame.size + topic + key + headers
        payment = self._decoder.decode(frame[at : at + length])
        payment["partition"] = partition
        payment["offset"] = offset
        payment["published_at_ms"] = published_ms
        payment["ingested_at_ms"] = ingested_ms
        return payment


class CustomerWindows(KeyedProcessFunction):  # type: ignore[misc]
    """Adds the features of event and customer."""

    def open(self, runtime_context: RuntimeContext) -> None:
        """Declare the state."""
        descriptor = ValueStateDescriptor("log", Types.PICKLED_BYTE_ARRAY())
        self._state = runtime_context.get_state(descriptor)

    def process_element(
        self, value: dict[str, Any], ctx: KeyedProcessFunction.Context
    ) -> Iterator[dict[str, Any]]:
        """Count one payment."""
        log = self._state.value() or new_log()
        value["features"] = [
            *event_inputs(value),
            *add_to_customer(log, value["event_time_ms"], value["amount_minor"]),
        ]
        self._state.update(log)
        yield value


class Decide(KeyedProcessFunction):  # type: ignore[misc]
    """Adds the features of the terminal, scores, decides; returns packets for the bridge."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def open(self, runtime_context: RuntimeContext) -> None:
        """Declare the state, load the model, connect to Redis."""
        import redis  # noqa: PLC0415 - only where it runs

        descriptor = ValueStateDescriptor("log", Types.PICKLED_BYTE_ARRAY())
        self._state = runtime_context.get_state(descriptor)
        self._scorer = Scorer(self._job, redis.Redis.from_url(self._job.redis))

    def process_element(
        self, value: dict[str, Any], ctx: KeyedProcessFunction.Context
    ) -> Iterator[bytes]:
        """Count and score one payment."""
        log = self._state.value() or new_log()
        value["features"] += add_to_terminal(log, value["event_time_ms"])
        self._state.update(log)
        yield packets_of(self._scorer.score([value]), self._scorer, self._job)


def main(path: str, mode: str) -> None:
    """Build the graph and submit it."""
    job = Job.read(path)
    configuration = Configuration()
    for key, value in {
        "pipeline.name": "payments-pyflink",
        "python.execution-mode": mode,
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.state.cache-size": "100000",
        "parallelism.default": str(job.parallelism),
        "pipeline.object-reuse": "true",
        "execution.buffer-timeout.interval": "1ms",
        "pipeline.auto-watermark-interval": f"{ALIGNMENT_MS}ms",
        "execution.checkpointing.interval": f"{job.checkpoint_ms}ms",
        "execution.checkpointing.dir": job.checkpoints,
        "state.backend.type": "hashmap",
    }.items():
        configuration.set_string(key, value)
    if mode == "process":
        # A bundle costs about a millisecond in each worker: shorter ones saturate sooner.
        configuration.set_string("python.fn-execution.bundle.time", "100")
        configuration.set_string("python.fn-execution.bundle.size", "10000")
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    jvm = get_gateway().jvm
    bridge = jvm.riskstream.bridge
    kafka = jvm.org.apache.flink.connector.kafka
    topics = jvm.java.util.ArrayList()
    topics.add(job.transactions)
    source = (
        kafka.source.KafkaSource.builder()
        .setBootstrapServers(job.kafka)
        .setTopics(topics)
        .setGroupId(job.group)
        .setStartingOffsets(kafka.source.enumerator.initializer.OffsetsInitializer.earliest())
        .setDeserializer(bridge.FrameDeserializer(jvm.java.util.ArrayList()))
        .setProperty("fetch.max.wait.ms", "5")
        .build()
    )
    watermarks = bridge.FrameWatermarks.aligned("payments", job.drift_ms, ALIGNMENT_MS, 250)
    frames = DataStream(
        env._j_stream_execution_environment.fromSource(source, watermarks, "payments")  # noqa: SLF001
    )
    packets = (
        frames.map(Decode(job), Types.PICKLED_BYTE_ARRAY())
        .key_by(lambda payment: payment["customer_id"], Types.STRING())
        .process(CustomerWindows(), Types.PICKLED_BYTE_ARRAY())
        .key_by(lambda payment: payment["terminal_id"], Types.STRING())
        .process(Decide(job), BYTES)
    )
    write_packets(packets, job)
    env.execute_async("payments-pyflink")


if __name__ == "__main__":
    main(*sys.argv[1:])
