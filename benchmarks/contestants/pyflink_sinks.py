"""Where both PyFlink contestants end: packets of rows and alerts leave through our bridge.

PyFlink's own sinks can set neither a record's key nor its time, and there is none for ClickHouse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from pyflink.common import Types
from pyflink.datastream import DataStream, ProcessFunction, RuntimeContext
from pyflink.java_gateway import get_gateway

import jobs.runtime  # noqa: F401 - lets a worker in process mode import what frames need
from benchmarks.contestants.payments import ClickHouseRows, Job, Scorer
from connectors.frames import kafka_packet, rows_packet, write_frame

__all__ = ["BYTES", "Insert", "packets_of", "write_packets"]

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
"""What an operator hands to `write_packets`."""


def packets_of(rows: Sequence[dict[str, Any]], scorer: Scorer, job: Job) -> bytes:
    """Return the packets of scored rows and of the alerts among them."""
    packets = rows_packet(len(rows), b"".join(orjson.dumps(row) + b"\n" for row in rows))
    frames = [
        write_frame(
            job.alerts,
            row["customer_id"].encode(),
            scorer.alert(row),
            timestamp_ms=row["decided_at_ms"],
        )
        for row in rows
        if row["decision"] != "approve"
    ]
    return packets + kafka_packet(frames) if frames else packets


class Insert(ProcessFunction):  # type: ignore[misc]
    """Inserts gathered rows."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def open(self, runtime_context: RuntimeContext) -> None:
        """Connect."""
        self._store = ClickHouseRows(self._job)

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[bytes]:
        """Store what `RowGather` joined: a count and the lines."""
        lines = bytes(value)[4:]
        # In front of a barrier comes a packet without rows: here all are stored already.
        if lines:
            self._store.insert(lines)
        yield from ()


def write_packets(packets: DataStream, job: Job) -> None:
    """Route packets to the alerts topic and, gathered, to ClickHouse."""
    jvm = get_gateway().jvm
    bridge, kafka = jvm.riskstream.bridge, jvm.org.apache.flink.connector.kafka
    keys = bridge.ShardKeys.balanced(1, 1)
    routed = packets._j_data_stream.transform(  # noqa: SLF001
        "route", bridge.BridgeTypes.keyedBatch(), bridge.FrameRouter(keys)
    )
    alerts = (
        kafka.sink.KafkaSink.builder()
        .setBootstrapServers(job.kafka)
        .setRecordSerializer(bridge.FrameSerializer())
        .setProperty("linger.ms", "0")
        .build()
    )
    routed.getSideOutput(bridge.BridgeTypes.kafkaOutput()).sinkTo(alerts)
    gathered = (
        routed.getSideOutput(bridge.BridgeTypes.rowOutput())
        .transform(
            "gather",
            bridge.BridgeTypes.bytes(),
            bridge.RowGather(job.gather_ms, job.gather_rows, 32 * 1024 * 1024, 0),
        )
        .disableChaining()
    )
    done = DataStream(gathered).process(Insert(job), BYTES)
    discard = jvm.org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink()
    done._j_data_stream.sinkTo(discard)  # noqa: SLF001
