"""What the fraud job did in the last seconds, seen from ClickHouse and Kafka alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from connectors.clickhouse import ClickHouseClient
from connectors.kafka import end_offsets
from connectors.settings import KafkaSettings
from connectors.tables import DECISIONS, SCORED_TABLE

__all__ = ["Activity", "LagMeter", "Latency", "recent_rows"]

_QUANTILES: Final = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds, and of how many events; None where there were none."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Latency:
        """Return the percentiles of values: the smallest value that the share does not exceed.

        >>> Latency.of([3.0, 1.0, 2.0]).p50
        2.0
        """
        if not values:
            return Latency(0, None, None, None, None)
        ordered = sorted(values)
        picked = [ordered[max(0, math.ceil(q * len(ordered)) - 1)] for q in _QUANTILES]
        return Latency(len(ordered), picked[0], picked[1], picked[2], ordered[-1])


@dataclass(frozen=True, slots=True)
class Activity:
    """Rows that reached ClickHouse in a window of time, by the server's clock."""

    rows: int
    rows_per_second: float
    decisions: Mapping[str, int]
    publish_to_decision: Latency
    publish_to_row: Latency


def recent_rows(client: ClickHouseClient, window_seconds: float) -> Activity:
    """Return what was inserted in the last seconds, redelivered rows included.

    Latencies compare the clocks of the machines that publish, decide and store.

    Raises:
        ClickHouseUnavailable: when ClickHouse does not answer.
        ClickHouseRefused: when the tables are not there; `riskstream migrate` makes them.
    """
    levels = ", ".join(str(q) for q in _QUANTILES)
    decisions = ", ".join(f"countIf(decision = '{name}') AS {name}" for name in DECISIONS)
    (row,) = client.rows(
        "WITH decided_at_ms - published_at_ms AS decision_ms, "  # noqa: S608 - our own names
        "toUnixTimestamp64Milli(inserted_at) - published_at_ms AS row_ms "
        f"SELECT count() AS rows, {decisions}, "
        f"quantilesExact({levels})(decision_ms) AS decision_levels, "
        "max(decision_ms) AS decision_max, "
        f"quantilesExact({levels})(row_ms) AS row_levels, max(row_ms) AS row_max "
        f"FROM {SCORED_TABLE} "
        "WHERE inserted_at > now64(3, 'UTC') - toIntervalMillisecond({window:UInt64})",
        {"window": round(window_seconds * 1000)},
    )
    count = int(row["rows"])
    return Activity(
        rows=count,
        rows_per_second=count / window_seconds,
        decisions={name: int(row[name]) for name in DECISIONS},
        publish_to_decision=_latency(count, row["decision_levels"], row["decision_max"]),
        publish_to_row=_latency(count, row["row_levels"], row["row_max"]),
    )


@dataclass(slots=True)
class LagMeter:
    """Transactions on Kafka that are neither rows nor dead letters yet, roughly.

    Counts the offsets after the highest one in ClickHouse, partition by partition.
    """

    client: ClickHouseClient
    kafka: KafkaSettings
    topic: str
    _highest: dict[int, int] = field(default_factory=dict)

    def read(self, window_seconds: float) -> int:
        """Return the lag; after the first call only rows of the window are looked at."""
        recent = "inserted_at > now64(3, 'UTC') - toIntervalMillisecond({window:UInt64})"
        rows = self.client.rows(
            "SELECT kafka_partition AS p, max(kafka_offset) AS o "  # noqa: S608 - our own names
            f"FROM {SCORED_TABLE} WHERE kafka_topic = {{topic:String}} "
            f"AND ({recent if self._highest else 1}) GROUP BY p",
            {"topic": self.topic, "window": round(window_seconds * 1000)},
        )
        for row in rows:
            partition = int(row["p"])
            self._highest[partition] = max(int(row["o"]), self._highest.get(partition, -1))
        ends = end_offsets(self.kafka, self.topic)
        return sum(max(0, end - 1 - self._highest.get(at, -1)) for at, end in ends.items())


def _latency(count: int, quantiles: Sequence[Any], largest: Any) -> Latency:
    if not count:
        return Latency.of([])
    p50, p95, p99 = (float(value) for value in quantiles)
    return Latency(count, p50, p95, p99, float(largest))
