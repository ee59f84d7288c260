"""Flink functions around stages and writers, and adapters for their state and metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pyflink.common import Types
from pyflink.datastream import KeyedProcessFunction, ProcessFunction, RuntimeContext
from pyflink.datastream.state import MapState, MapStateDescriptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.stage import Stage, Writer

__all__ = ["StageFunction", "WriterFunction"]

# Several Python operators share one GIL in a TaskManager. CPython's default of 5 ms lets a stage in
# the middle of a large batch hold up the alert of a small one for that long; below about 0.2 ms the
# switches themselves cost more than they save.
GIL_SWITCH_SECONDS: Final = 0.0005

# Upper bounds of the latency histogram in milliseconds; the last bucket has none.
BUCKETS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000)


class _ShardState:
    """One shard's Flink map state behind the `StateMap` seam."""

    def __init__(self, state: MapState) -> None:
        self._state = state

    def get(self, key: int) -> bytes | None:
        value = self._state.get(key)
        return None if value is None else bytes(value)

    def put(self, key: int, value: bytes) -> None:
        self._state.put(key, value)

    def remove(self, key: int) -> None:
        self._state.remove(key)

    def items(self) -> Iterator[tuple[int, bytes]]:
        for key, value in self._state.items():
            yield int(key), bytes(value)


class FlinkMetrics:
    """Counters, gauges and bucketed histograms in Flink's metric group.

    PyFlink has no histogram, so each bucket is a counter labelled `le`, as Prometheus expects.
    """

    def __init__(self, context: RuntimeContext) -> None:
        self._group = context.get_metrics_group().add_group("riskstream")
        self._counters: dict[str, Any] = {}
        self._buckets: dict[str, list[Any]] = {}
        self._gauges: dict[str, int] = {}

    def count(self, name: str, by: int = 1) -> None:
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = self._group.counter(name)
        if by:
            counter.inc(by)

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None:
        buckets = self._buckets.get(name)
        if buckets is None:
            bounds = [str(bound) for bound in BUCKETS_MS] + ["+Inf"]
            buckets = self._buckets[name] = [
                self._group.add_group("le", bound).counter(f"{name}_bucket") for bound in bounds
            ]
        for bucket, bound in zip(buckets, BUCKETS_MS, strict=False):
            if milliseconds <= bound:
                bucket.inc(times)
        buckets[-1].inc(times)

    def gauge(self, name: str, value: int) -> None:
        # A counter that is moved to the value. In thread mode a Python gauge is called by Flink's
        # metrics thread, also after its task ended and took the interpreter state with it: that
        # ended the TaskManager with SIGSEGV (PyFlink 2.3.0, MetricGauge.getValue) when a job was
        # cancelled or restarted while somebody looked at its metrics.
        self.count(name, value - self._gauges.get(name, 0))
        self._gauges[name] = value


class StageFunction(KeyedProcessFunction):  # type: ignore[misc]
    """Run a stage on `Row(shard key, batch)`; emit its packets as bytes."""

    def __init__(self, stage: Stage, shard_keys: Sequence[int]) -> None:
        self._stage = stage
        self._shard_of = {key: shard for shard, key in enumerate(shard_keys)}

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open the stage in this task."""
        sys.setswitchinterval(GIL_SWITCH_SECONDS)
        descriptor = MapStateDescriptor("log", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        self._state = _ShardState(runtime_context.get_map_state(descriptor))
        self._stage.open(FlinkMetrics(runtime_context))

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[bytes]:
        """Process one batch of a shard; emit its packets."""
        packets = self._stage.process(self._shard_of[value[0]], bytes(value[1]), self._state)
        if packets:
            yield packets


class WriterFunction(ProcessFunction):  # type: ignore[misc]
    """Hand gathered rows to a writer; emit nothing."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open the writer in this task."""
        self._writer.open(FlinkMetrics(runtime_context))

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[bytes]:
        """Store gathered rows before returning."""
        self._writer.write(bytes(value))
        yield from ()
