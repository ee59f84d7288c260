"""Build a job's Flink graph from stages: the one typed adapter over Flink's Java API (py4j).

A job reads like its diagram::

    events = graph.kafka_source("card events", topics=[...], control_topics=[...])
    customers = graph.stage("customer windows", events.by_key(), CustomerStage(...))
    decisions = graph.stage("score and decide", customers.to_next, DecisionStage(...))
    graph.kafka_sink("alerts and dead letters", [customers, decisions])
    graph.writer("ClickHouse", [customers, decisions], ClickHouseRows(...))

Every operator gets a uid from its name, so that state finds its operator again after an upgrade.
Thread mode allows one Python operator in a task, so each stage starts behind a shuffle and the
writer starts its own chain; the end-to-end tests run in thread mode.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pyflink.common import Configuration, Types
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.data_stream import DataStream, KeyedStream
from pyflink.java_gateway import get_gateway

from connectors.kafka import flink_properties
from jobs.runtime.functions import StageFunction, WriterFunction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from connectors.settings import Settings
    from jobs.stage import Stage, Writer

__all__ = ["Batches", "JobGraph", "Routed"]

# At most one emission of a gather in this time: it bounds what the fixed cost of a batch can take
# (a call a shard and stage, 1-2 ms of CPU for both stages), and costs half of it in latency.
GATHER_MS: Final = 10
GATHER_BYTES: Final = 512 * 1024
# All shards of a task together; 4 MB is 20 ms of work, so a barrier never waits long behind it.
GATHER_TOTAL_BYTES: Final = 4 * 1024 * 1024
# An insert at most: some 100,000 scored rows. `clickhouse.gather_rows` ends the usual one earlier.
ROWS_BYTES: Final = 32 * 1024 * 1024
# Flink keeps an element of up to 5 MB in memory when it passes from task to task, and writes a
# larger one to a file.
PACKED_BYTES: Final = 4 * 1024 * 1024
# What a stage may hold while the writer stores all that came before a barrier: about a second of
# the highest rate.
HELD_BYTES: Final = 32 * 1024 * 1024
# A checkpoint begins with a flush of what RocksDB has not written yet, and the stage stands still
# until it is done. With 64 MB, Flink's default, that is ten seconds' worth.
WRITE_BUFFER: Final = "8mb"
# How often partitions report how far they are and learn how far they may read: a call to the
# JobManager from each source task and one back. A replay runs at most the allowed drift ahead in
# two of them.
ALIGNMENT_UPDATE_MS: Final = 80
# A fetch is answered with this many bytes or after this time, so below 25 MB/s one of each broker
# every 10 ms: an answer costs the broker 0.4 ms of CPU however little is in it.
FETCH_BYTES: Final = 256 * 1024
FETCH_MS: Final = 10
# Process mode collects a bundle before it calls Python: bound what that adds to latency. Thread
# mode has no bundles, and its operators would look for them at this pace all the same.
_PROCESS_BUNDLES: Final = {
    "python.fn-execution.bundle.time": "5",
    "python.fn-execution.bundle.size": "100",
}


@dataclass(frozen=True, slots=True)
class Batches:
    """A stream of `Row(shard key, Row(shard key, batch))` that a stage can take."""

    j_stream: Any


@dataclass(frozen=True, slots=True)
class Routed:
    """What a stage returned, split: batches for the next stage, Kafka records, rows."""

    to_next: Batches
    j_records: Any
    j_rows: Any


class JobGraph:
    """One job under construction."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._settings = settings
        self._flink = settings.flink
        self._env = StreamExecutionEnvironment.get_execution_environment(self._configuration())
        self._env.set_max_parallelism(self._flink.max_parallelism)
        self._gateway = get_gateway()
        self._bridge = self._gateway.jvm.riskstream.bridge
        j_keys = self._bridge.ShardKeys.balanced(self._flink.shards, self._flink.max_parallelism)
        self._j_shard_keys = j_keys
        self._shard_keys = [int(key) for key in j_keys]
        self._stages = 0

    def _configuration(self) -> Configuration:
        flink = self._flink
        values = {
            "pipeline.name": self._name,
            "python.execution-mode": flink.execution_mode,
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
            **(_PROCESS_BUNDLES if flink.execution_mode == "process" else {}),
            "parallelism.default": str(flink.parallelism),
            "pipeline.object-reuse": "true",
            "execution.buffer-timeout.interval": "0ms",
            "pipeline.auto-watermark-interval": f"{ALIGNMENT_UPDATE_MS}ms",
            "execution.checkpointing.interval": f"{flink.checkpoint_interval_ms}ms",
            "execution.checkpointing.timeout": f"{flink.checkpoint_timeout_ms}ms",
            "execution.checkpointing.tolerable-failed-checkpoints": str(
                flink.tolerable_failed_checkpoints
            ),
            "execution.checkpointing.min-pause": "500ms",
            "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
            "state.backend.type": "rocksdb",
            "execution.checkpointing.incremental": "true",
            "state.backend.rocksdb.writebuffer.size": WRITE_BUFFER,
        }
        if flink.checkpoint_directory is not None:
            values["execution.checkpointing.dir"] = flink.checkpoint_directory
        configuration = Configuration()
        for key, value in values.items():
            configuration.set_string(key, value)
        return configuration

    def kafka_source(
        self, name: str, topics: Sequence[str], control_topics: Sequence[str]
    ) -> Batches:
        """Read the topics as frames and pack them into batches by the shard of their key.

        Partitions are read aligned in event time, so that a catch-up does not run one partition
        days ahead of another. Control records go to every shard.
        """
        jvm = self._gateway.jvm
        kafka = jvm.org.apache.flink.connector.kafka.source
        offsets = kafka.enumerator.initializer.OffsetsInitializer
        builder = (
            kafka.KafkaSource.builder()
            .setBootstrapServers(self._bootstrap_servers())
            .setTopics(self._j_list([*topics, *control_topics]))
            .setGroupId(f"riskstream-{self._name}")
            .setStartingOffsets(
                offsets.committedOffsets(
                    jvm.org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.OffsetResetStrategy.EARLIEST
                )
            )
            .setDeserializer(self._bridge.FrameDeserializer(self._j_list(control_topics)))
        )
        properties = {
            **self._kafka_properties(),
            # With one byte, the default, a broker at 2,000 events/s answers a thousand fetches a
            # second of two events each.
            "fetch.min.bytes": str(FETCH_BYTES),
            "fetch.max.wait.ms": str(FETCH_MS),
            "client.id.prefix": f"riskstream-{self._name}",
            "partition.discovery.interval.ms": "30000",
        }
        for key, value in properties.items():
            builder = builder.setProperty(key, value)
        watermarks = self._bridge.FrameWatermarks.aligned(
            self._name,
            self._flink.max_event_time_drift_ms,
            ALIGNMENT_UPDATE_MS,
            self._flink.idle_partition_ms,
        )
        readers = self._flink.source_parallelism
        j_frames = (
            self._env._j_stream_execution_environment.fromSource(  # noqa: SLF001
                builder.build(), watermarks, name
            )
            .uid(_uid(name))
            .setParallelism(readers)
        )
        batcher = self._bridge.ShardBatcher(
            self._flink.batch_bytes, self._flink.batch_ms, self._j_shard_keys
        )
        j_batches = j_frames.transform(f"{name}: batch by shard", self._j_batch_type(), batcher)
        return Batches(j_batches.uid(_uid(f"{name}-batch")).setParallelism(readers))

    def stage(self, name: str, batches: Batches, stage: Stage) -> Routed:
        """Run a keyed stage: shuffle by shard, merge what waited, call Python once a batch.

        The first stage shares its slots with the source and the writers.
        """
        jvm = self._gateway.jvm
        selector = jvm.org.apache.flink.streaming.api.functions.python.KeyByKeySelector
        j_key_type = self._bridge.BridgeTypes.key()
        j_gathered = (
            batches.j_stream.keyBy(selector(), j_key_type)
            .transform(
                f"{name}: gather",
                self._j_batch_type(),
                self._bridge.Gather(GATHER_MS, GATHER_BYTES, GATHER_TOTAL_BYTES),
            )
            .uid(_uid(f"{name}-gather"))
        )
        if self._stages and self._flink.stage_slots == "own":
            j_gathered = j_gathered.slotSharingGroup(_uid(name))
        self._stages += 1
        j_keyed = (
            jvm.org.apache.flink.streaming.api.datastream.DataStreamUtils.reinterpretAsKeyedStream(
                j_gathered, selector(), j_key_type
            )
        )
        packets = (
            KeyedStream(j_keyed, _BATCH, DataStream(j_gathered))
            .process(
                StageFunction(_uid(name), stage, self._shard_keys, self._settings),
                Types.PRIMITIVE_ARRAY(Types.BYTE()),
            )
            .uid(_uid(name))
            .name(name)
        )
        j_routed = packets._j_data_stream.transform(  # noqa: SLF001
            f"{name}: route", self._j_batch_type(), self._bridge.FrameRouter(self._j_shard_keys)
        ).uid(_uid(f"{name}-route"))
        return Routed(
            Batches(j_routed),
            j_routed.getSideOutput(self._bridge.BridgeTypes.kafkaOutput()),
            j_routed.getSideOutput(self._bridge.BridgeTypes.rowOutput()),
        )

    def kafka_sink(self, name: str, routed: Sequence[Routed]) -> None:
        """Publish the records that the stages addressed to Kafka, each to the topic it names."""
        jvm = self._gateway.jvm
        guarantee = jvm.org.apache.flink.connector.base.DeliveryGuarantee
        exactly_once = self._flink.delivery == "exactly-once"
        for number, one in enumerate(routed, start=1):
            label = name if len(routed) == 1 else f"{name} ({number})"
            builder = (
                jvm.org.apache.flink.connector.kafka.sink.KafkaSink.builder()
                .setRecordSerializer(self._bridge.FrameSerializer())
                .setDeliveryGuarantee(
                    guarantee.EXACTLY_ONCE if exactly_once else guarantee.AT_LEAST_ONCE
                )
                .setTransactionalIdPrefix(f"riskstream-{self._name}-{_uid(label)}")
            )
            properties = {
                **self._kafka_properties(),
                # A batch's alerts come one right after the other: one request for all of them.
                "linger.ms": "2",
                # A dead letter is larger than the record that it holds.
                "max.request.size": str(17 * 1024 * 1024),
                "compression.type": "lz4",
                "transaction.timeout.ms": str(self._flink.transaction_timeout_ms),
            }
            for key, value in properties.items():
                builder = builder.setProperty(key, value)
            builder = builder.setBootstrapServers(self._bootstrap_servers())
            one.j_records.sinkTo(builder.build()).uid(_uid(label)).name(label)

    def writer(self, name: str, routed: Sequence[Routed], writer: Writer) -> None:
        """Gather rows for up to about a second and store them; alerts never wait for it.

        Rows are gathered twice: beside the stage, which goes on for as long as it does not send
        what it has gathered, also while the writer stores all before a barrier; and beside the
        writer, which makes inserts of what comes from all tasks of all stages.
        """
        jvm = self._gateway.jvm
        clickhouse = self._settings.clickhouse
        packed_ms = clickhouse.gather_ms // 4
        streams = [
            one.j_rows.transform(
                f"{name}: pack ({number})",
                self._bridge.BridgeTypes.bytes(),
                self._bridge.RowGather(packed_ms, clickhouse.gather_rows, PACKED_BYTES, HELD_BYTES),
            ).uid(_uid(f"{name}-pack-{number}"))
            for number, one in enumerate(routed, start=1)
        ]
        j_rows = streams[0]
        if len(streams) > 1:
            j_rows = j_rows.union(self._j_streams(streams[1:]))
        j_gathered = (
            j_rows.transform(
                f"{name}: gather",
                self._bridge.BridgeTypes.bytes(),
                self._bridge.RowGather(
                    clickhouse.gather_ms - packed_ms, clickhouse.gather_rows, ROWS_BYTES, 0
                ),
            )
            .uid(_uid(f"{name}-gather"))
            .setParallelism(clickhouse.writers)
            # Not in a chain with the stage in front, which is a Python operator too. In one with
            # the writer: between tasks, what is gathered is more than Flink holds in memory, and it
            # writes each element to a file and reads it back.
            .startNewChain()
        )
        done = (
            DataStream(j_gathered)
            .process(WriterFunction(writer), Types.PRIMITIVE_ARRAY(Types.BYTE()))
            .set_parallelism(clickhouse.writers)
            .uid(_uid(name))
            .name(name)
        )
        discard = jvm.org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink()
        j_end = done._j_data_stream.sinkTo(discard).setParallelism(clickhouse.writers)  # noqa: SLF001
        j_end.uid(_uid(f"{name}-end")).name(f"{name}: end")

    def submit(self) -> str:
        """Submit the graph to the cluster and return the job id."""
        return str(self._env.execute_async(self._name).get_job_id())

    def plan_json(self) -> str:
        """Return Flink's own description of the graph, without submitting it."""
        return str(self._env.get_execution_plan())

    def _bootstrap_servers(self) -> str:
        servers = self._settings.kafka.bootstrap_servers
        if servers is None:
            msg = "building the job graph: kafka.bootstrap_servers was None; resolve the settings"
            raise ValueError(msg)
        return servers

    def _kafka_properties(self) -> Mapping[str, str]:
        return flink_properties(self._settings.kafka)

    def _j_batch_type(self) -> Any:
        return self._bridge.BridgeTypes.keyedBatch()

    def _j_list(self, values: Sequence[str]) -> Any:
        j_list = self._gateway.jvm.java.util.ArrayList()
        for value in values:
            j_list.add(value)
        return j_list

    def _j_streams(self, streams: Sequence[Any]) -> Any:
        j_class = self._gateway.jvm.org.apache.flink.streaming.api.datastream.DataStream
        array = self._gateway.new_array(j_class, len(streams))
        for index, stream in enumerate(streams):
            array[index] = stream
        return array


_BATCH: Final = Types.ROW([Types.LONG(), Types.PRIMITIVE_ARRAY(Types.BYTE())])


def _uid(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
