"""Where the time of both fraud stages goes, by batch size: no Flink, no Kafka, no Redis.

The stages run in this process on frames in memory; profiles come from a dictionary. Times are CPU
time of this thread, so that other work on the machine disturbs them little. From the medians at
several batch sizes a line is fitted: its intercept is the fixed cost of a batch, its slope the cost
of an event.

    python -m benchmarks.stage_profile --json
    python -m benchmarks.stage_profile --functions 500
"""

from __future__ import annotations

import cProfile
import json
import pstats
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click
import numpy as np

from benchmarks.workload import Workload
from connectors.settings import Settings, load_settings
from jobs.fraud.customer_stage import CustomerStage
from jobs.fraud.decision_stage import DecisionStage
from jobs.fraud.parts import StageParts
from models.registry import default_version

__all__ = ["StageRun", "fit_cost", "main", "measure_stages"]

_PACKET: Final = struct.Struct("<BBHII")
SIZES: Final = (5, 50, 500, 5_000)


@dataclass(slots=True)
class _Metrics:
    counters: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, by: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + by

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + times

    def gauge(self, name: str, value: int) -> None:
        self.counters[name] = value


class _State:
    def __init__(self) -> None:
        self._entries: dict[int, bytes] = {}

    def get(self, key: int) -> bytes | None:
        return self._entries.get(key)

    def put(self, key: int, value: bytes) -> None:
        self._entries[key] = value

    def remove(self, key: int) -> None:
        self._entries.pop(key, None)

    def items(self) -> Any:
        return list(self._entries.items())


@dataclass(slots=True)
class StageRun:
    """CPU microseconds of each batch through one stage; `rows` is the batch size."""

    rows: int
    customer_us: list[float] = field(default_factory=list)
    decision_us: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return medians a batch, and their sum an event."""
        customer = float(np.median(self.customer_us))
        decision = float(np.median(self.decision_us))
        return {
            "rows": self.rows,
            "batches": len(self.customer_us),
            "customer_stage_us": round(customer, 1),
            "decision_stage_us": round(decision, 1),
            "both_us_per_batch": round(customer + decision, 1),
            "both_us_per_event": round((customer + decision) / self.rows, 3),
            "fastest_us_per_event": round(
                (min(self.customer_us) + min(self.decision_us)) / self.rows, 3
            ),
        }


class _Stages:
    """Both stages with one shard each."""

    def __init__(self, settings: Settings, workload: Workload) -> None:
        tree = settings.model_dump()
        tree["flink"] |= {"shards": 1, "parallelism": 1}
        parts = StageParts(Settings.model_validate(tree))
        self.customer = CustomerStage(parts)
        self.decision = DecisionStage(parts, default_version())
        self.metrics = _Metrics()
        self.customer.open(self.metrics)
        self.decision.open(self.metrics)
        for lookup in self.decision._profiles.values():  # noqa: SLF001 - no seam for a client here
            lookup._client_factory = workload.profile_client  # noqa: SLF001
        self._states = _State(), _State()

    def run(self, batch: bytes) -> tuple[float, float]:
        """Return CPU microseconds of the customer and of the decision stage."""
        began = time.thread_time_ns()
        packets = self.customer.process(0, batch, self._states[0])
        between = time.thread_time_ns()
        onward = _frames(packets)
        resumed = time.thread_time_ns()
        self.decision.process(0, onward, self._states[1])
        return (between - began) / 1000, (time.thread_time_ns() - resumed) / 1000


def _frames(packets: bytes) -> bytes:
    at, found = 0, []
    while at < len(packets):
        route, _, _, _, length = _PACKET.unpack_from(packets, at)
        at += _PACKET.size
        if route == 0:
            found.append(packets[at : at + length])
        at += length
    return b"".join(found)


def measure_stages(
    sizes: Sequence[int] = SIZES, batches: int = 200, most_events: int = 60_000, warm: int = 20_000
) -> list[StageRun]:
    """Run batches of each size through both stages, after `warm` events in batches of 1,000.

    Sizes take turns, so that a growing store or a disturbance meets all of them alike. A size gets
    at most `batches` batches and `most_events` events.
    """
    settings = load_settings(environment={})
    counts = {size: max(5, min(batches, most_events // size)) for size in sizes}
    workload = Workload(warm + sum(size * count for size, count in counts.items()))
    stages = _Stages(settings, workload)
    frames = workload.frames("card-transactions")
    at = 0
    for _ in range(0, warm, 1_000):
        stages.run(b"".join(frames[at : at + 1_000]))
        at += 1_000
    runs = {size: StageRun(size) for size in sizes}
    while any(counts.values()):
        for size in [one for one in sizes if counts[one]]:
            counts[size] -= 1
            customer, decision = stages.run(b"".join(frames[at : at + size]))
            at += size
            runs[size].customer_us.append(customer)
            runs[size].decision_us.append(decision)
    return list(runs.values())


def fit_cost(runs: Sequence[StageRun]) -> dict[str, float]:
    """Fit `microseconds = fixed + each * rows` through the medians, weighing relative errors."""
    rows = np.array([run.rows for run in runs], np.float64)
    cost = np.array([np.median(run.customer_us) + np.median(run.decision_us) for run in runs])
    design = np.column_stack([np.ones_like(rows), rows]) / cost[:, None]
    fixed, each = np.linalg.lstsq(design, np.ones_like(cost), rcond=None)[0]
    return {"fixed_us_per_batch": round(float(fixed), 1), "us_per_event": round(float(each), 3)}


def _profile(size: int, batches: int) -> None:
    workload = Workload(20_000 + size * batches)
    stages = _Stages(load_settings(environment={}), workload)
    frames = workload.frames("card-transactions")
    at = 0
    for _ in range(20):
        stages.run(b"".join(frames[at : at + 1_000]))
        at += 1_000
    cuts = [b"".join(frames[i : i + size]) for i in range(at, at + size * batches, size)]
    profiler = cProfile.Profile(time.thread_time)
    profiler.enable()
    for batch in cuts:
        stages.run(batch)
    profiler.disable()
    stats = pstats.Stats(profiler, stream=sys.stderr)
    stats.sort_stats("tottime").print_stats(30)
    stats.sort_stats("cumtime").print_stats(45)


@click.command()
@click.option("--batches", default=200, show_default=True, help="Most batches of a size.")
@click.option("--functions", type=int, help="Profile batches of this size by function instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(batches: int, functions: int | None, as_json: bool) -> None:
    """Measure both stages of the fraud job by batch size.

    Example: python -m benchmarks.stage_profile --json
    """
    if functions is not None:
        _profile(functions, batches)
        return
    runs = measure_stages(batches=batches)
    result = {"runs": [run.summary() for run in runs], "model": fit_cost(runs)}
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for run in result["runs"]:
        click.echo(run)
    click.echo(result["model"])


if __name__ == "__main__":
    main()
