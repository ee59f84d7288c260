"""Flink functions around stages and writers, and adapters for their state and metrics."""

from __future__ import annotations

import pickle
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from pyflink.common import Types
from pyflink.datastream import KeyedProcessFunction, ProcessFunction, RuntimeContext
from pyflink.datastream.state import MapState, MapStateDescriptor

from jobs.runtime.background import let_background_wait
from jobs.runtime.crash_marks import CrashMarks, report_crashes_to
from jobs.runtime.loaded import leave_loaded_alone
from jobs.runtime.quarantine import Quarantine
from jobs.runtime.trial import killers_of
from jobs.runtime.write_behind import WriteBehind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.settings import Settings
    from jobs.stage import Stage, Writer

__all__ = ["StageFunction", "WriterFunction"]

# Several Python operators share one GIL in a TaskManager. CPython's default of 5 ms lets a stage in
# the middle of a large batch hold up the alert of a small one for that long; below about 0.2 ms the
# switches themselves cost more than they save.
GIL_SWITCH_SECONDS: Final = 0.0005

# Below the state directory: marks of batches in hand and the crash reports of processes.
CRASHES: Final = "crashes"

# How old a counter may be. Also after the last batch: a timer shows what it counted.
METRICS_EVERY_MS: Final = 500

# Threads that upload state start with the first checkpoints.
BACKGROUND_EVERY_SECONDS: Final = 10.0

# What a writer gets in front of a barrier: a count of no rows.
NO_ROWS: Final = bytes(4)

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

    Counts collect here until `flush`: each counter is a call into the JVM that gives the GIL away,
    and the forty of a batch took a fifth of a stage's CPU and a third of its time. PyFlink has no
    histogram, so each bucket is a counter labelled `le`, as Prometheus expects.
    """

    def __init__(self, context: RuntimeContext) -> None:
        self._group = context.get_metrics_group().add_group("riskstream")
        self._counters: dict[str, Any] = {}
        self._buckets: dict[str, list[Any]] = {}
        self._gauges: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._observed: dict[str, list[int]] = {}
        self._lock = Lock()

    def count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + by

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None:
        with self._lock:
            observed = self._observed.get(name)
            if observed is None:
                observed = self._observed[name] = [0] * (len(BUCKETS_MS) + 1)
            observed[bisect_left(BUCKETS_MS, milliseconds)] += times

    def gauge(self, name: str, value: int) -> None:
        # A counter that is moved to the value. In thread mode a Python gauge is called by Flink's
        # metrics thread, also after its task ended and took the interpreter state with it: that
        # ended the TaskManager with SIGSEGV (PyFlink 2.3.0, MetricGauge.getValue) when a job was
        # cancelled or restarted while somebody looked at its metrics.
        self.count(name, value - self._gauges.get(name, 0))
        self._gauges[name] = value

    def flush(self) -> None:
        """Move what was counted since the last time into Flink's counters: from the task's thread.

        The other methods may be called from any.
        """
        with self._lock:
            counts, observations = self._counts, self._observed
            self._counts = dict.fromkeys(counts, 0)
            self._observed = {name: [0] * len(observed) for name, observed in observations.items()}
        for name, by in counts.items():
            counter = self._counters.get(name)
            if counter is None:
                counter = self._counters[name] = self._group.counter(name)
            if by:
                counter.inc(by)
        for name, observed in observations.items():
            buckets = self._buckets.get(name)
            if buckets is None:
                bounds = [str(bound) for bound in BUCKETS_MS] + ["+Inf"]
                buckets = self._buckets[name] = [
                    self._group.add_group("le", bound).counter(f"{name}_bucket") for bound in bounds
                ]
            # A bucket counts all that is at most its bound.
            for bucket, by in zip(buckets, accumulate(observed), strict=True):
                if by:
                    bucket.inc(by)


class StageFunction(KeyedProcessFunction):  # type: ignore[misc]
    """Run a stage on `Row(shard key, batch)`; emit its packets as bytes.

    Args:
        name: the stage's, as its uid.
        stage: what to run.
        shard_keys: Flink's key of each shard.
        settings: where crashes are noted, and whether Python has a process of its own.
    """

    def __init__(
        self, name: str, stage: Stage, shard_keys: Sequence[int], settings: Settings
    ) -> None:
        self._name = name
        self._stage = stage
        self._shard_of = {key: shard for shard, key in enumerate(shard_keys)}
        self._crashes = str(settings.home.resolve() / CRASHES)
        self._own_process = settings.flink.execution_mode == "process"
        self._python = sys.executable

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open the stage in this task."""
        sys.setswitchinterval(GIL_SWITCH_SECONDS)
        descriptor = MapStateDescriptor("log", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        state = _ShardState(runtime_context.get_map_state(descriptor))
        self._metrics = FlinkMetrics(runtime_context)
        self._flush_is_due = False
        self._background_looked_at = 0.0
        crashes = Path(self._crashes)
        if self._own_process:
            report_crashes_to(crashes)
        self._marks = CrashMarks(crashes, self._name)
        self._marks.open()
        trial = partial(killers_of, self._python, pickle.dumps(self._stage))
        self._stage.open(self._metrics)
        self._quarantine = Quarantine(self._stage, state, self._metrics, self._marks, trial)
        leave_loaded_alone()

    def close(self) -> None:
        """Say that this task ended in order."""
        self._marks.close()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[bytes]:
        """Process one batch of a shard; emit its packets."""
        if not self._flush_is_due:
            self._flush_is_due = True
            timers = ctx.timer_service()
            timers.register_processing_time_timer(
                timers.current_processing_time() + METRICS_EVERY_MS
            )
        packets = self._quarantine.process(self._shard_of[value[0]], bytes(value[1]))
        if packets:
            yield packets

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[bytes]:
        """Show the counts of the last moments, look after background threads; emit nothing."""
        self._flush_is_due = False
        self._metrics.flush()
        now = time.monotonic()
        if now - self._background_looked_at >= BACKGROUND_EVERY_SECONDS:
            self._background_looked_at = now
            let_background_wait()
        yield from ()


class WriterFunction(ProcessFunction):  # type: ignore[misc]
    """Hand gathered rows to a writer; emit nothing.

    Rows are stored while the next are gathered; an element without rows, which `RowGather` sends in
    front of each barrier, waits until all are stored.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open the writer in this task."""
        self._metrics = FlinkMetrics(runtime_context)
        self._writer.open(self._metrics)
        self._behind = WriteBehind(self._writer.write, self._metrics.flush)

    def close(self) -> None:
        """Let go: a write that still waits for its database gives up."""
        self._writer.close()

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[bytes]:
        """Take gathered rows when those before are stored."""
        rows = bytes(value)
        if rows == NO_ROWS:
            self._behind.settle()
        else:
            self._behind.hand_over(rows)
        self._metrics.flush()
        yield from ()
